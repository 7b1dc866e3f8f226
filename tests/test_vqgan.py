"""VQGAN's laws: what the original recorded, files, codes, memory formats and precisions, training, and bad input."""

import json
from pathlib import Path

import pytest
import torch
from architectures import IMAGES, TINY
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from noria import NoriaVQGANConfig, NoriaVQGANModel, hub

GOLDEN = Path(__file__).parent / "golden"
CASES = ["vqgan", "vqgan_nin", "vqgan_gumbel", "vqgan_seg"]
RENAMED = {
    "quantize.embed.": "quantizer.embedding.",
    "quantize.": "quantizer.",
    "quant_conv.": "pre_quantizer.",
    "post_quant_conv.": "post_quantizer.",
}
PLAIN = IMAGES[0]


def over(entries):
    return pytest.mark.parametrize("entry", entries, ids=str)


@pytest.fixture(autouse=True)
def fsq_where_it_is(request):
    entry = request.node.callspec.params.get("entry") if hasattr(request.node, "callspec") else None
    if entry is not None and entry.fields.get("quantizer") == "fsq":
        pytest.importorskip("vector_quantize_pytorch")


def make(entry=PLAIN, dtype=torch.float32, **fields):
    return entry.model("Model", dtype=dtype, **fields)


def draw(model, batch=2, height=16, width=24, seed=0, dtype=torch.float32):
    """Images from -1 to 1, or maps with one label for each pixel."""
    generator = torch.Generator().manual_seed(seed)
    channels = model.config.num_channels
    if model.config.task == "segmentation":
        labels = torch.randint(channels, (batch, height, width), generator=generator)
        return torch.nn.functional.one_hot(labels, channels).movedim(-1, 1).to(dtype)
    return (torch.rand(batch, channels, height, width, generator=generator) * 2 - 1).to(dtype)


def of_upstream(params):
    """The configuration for the arguments of a constructor of taming-transformers."""
    inner = params["ddconfig"]
    return NoriaVQGANConfig(
        vocab_size=params["n_embed"],
        code_size=params["embed_dim"],
        hidden_size=inner["ch"],
        num_hidden_layers=inner["num_res_blocks"],
        channel_multipliers=inner["ch_mult"],
        attention_resolutions=inner["attn_resolutions"],
        image_size=inner["resolution"],
        num_channels=inner["in_channels"],
        output_channels=inner["out_ch"],
        latent_channels=inner["z_channels"],
        quantizer="gumbel" if "kl_weight" in params else "vq",
        kl_weight=params.get("kl_weight", 0),
        task="segmentation" if "n_labels" in params else "image",
    )


def load_golden(case):
    folder = GOLDEN / case
    params = json.loads((folder / "case.json").read_text())["config"]["params"]
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    model = NoriaVQGANModel(of_upstream(params)).eval()
    renamed = {}
    for name, x in state.items():
        if not name.startswith(("loss.", "colorize")):
            old = next((old for old in RENAMED if name.startswith(old)), "")
            renamed[RENAMED.get(old, "") + name.removeprefix(old)] = x.float()
    model.load_state_dict(renamed)
    return model, load_file(folder / "inputs_outputs.safetensors")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_the_original_recorded(case):
    model, recorded = load_golden(case)
    output = model(recorded["pixel_values"])
    assert torch.equal(output.codes, recorded["indices"])
    for ours, theirs in (("latents", "prequant"), ("quantized", "quant"), ("reconstruction", "reconstruction")):
        torch.testing.assert_close(output[ours], recorded[theirs], atol=2e-5, rtol=0)
    expected = {"kl_loss": output.quantizer_loss, "loss": output.loss, "nll_loss": output.reconstruction_loss}
    for legacy in (0, 1) if case != "vqgan_gumbel" else ():
        model.quantizer.legacy = bool(legacy)
        expected[f"emb_loss_legacy{legacy}"] = model.encode(recorded["pixel_values"]).quantizer_loss
    for name in expected.keys() & recorded.keys():
        torch.testing.assert_close(expected[name], recorded[name], rtol=1e-4, atol=0)
    assert expected.keys() & recorded.keys()


@torch.no_grad()
def test_gumbel_with_the_recorded_noise():
    model, recorded = load_golden("vqgan_gumbel")
    logits = model.quantizer.logits(recorded["prequant"])
    torch.testing.assert_close(logits, recorded["gumbel_logits"], atol=2e-5, rtol=0)
    codes = (logits + recorded["gumbel_noise"]).argmax(1)
    assert torch.equal(codes, recorded["noisy_indices"])
    torch.testing.assert_close(model.decode_codes(codes), recorded["noisy_reconstruction"], atol=2e-5, rtol=0)


PUBLISHED = {
    "imagenet_f16_1024": ({}, 343, 72.1),
    "imagenet_f16_16384": ({"vocab_size": 16384}, 343, 76.1),
    "gumbel_f8": (
        {
            "vocab_size": 8192,
            "channel_multipliers": [1, 1, 2, 4],
            "attention_resolutions": [32],
            "quantizer": "gumbel",
        },
        301,
        69.0,
    ),
    "ldm_f4": (
        {
            "vocab_size": 8192,
            "channel_multipliers": [1, 2, 4],
            "attention_resolutions": [],
            "latent_channels": 3,
            "code_size": 3,
        },
        205,
        55.3,
    ),
    "ldm_f8": (
        {
            "vocab_size": 16384,
            "channel_multipliers": [1, 2, 2, 4],
            "attention_resolutions": [32],
            "latent_channels": 4,
            "code_size": 4,
        },
        299,
        67.7,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_tensors_and_parameters(name):
    fields, tensors, millions = PUBLISHED[name]
    with torch.device("meta"):
        model = NoriaVQGANModel(NoriaVQGANConfig(**fields))
    assert len(model.state_dict()) == tensors
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.11)


def test_defaults_are_the_published_model():
    config = NoriaVQGANConfig()
    assert (config.downsampling, config.norm_num_groups, config.output_channels) == (16, 32, 3)
    assert config.level_widths == [128, 128, 256, 256, 512]


@pytest.mark.parametrize("size", [1, 7, 48, 64])
def test_a_model_of_any_size_works(size):
    config = AutoConfig.for_model("noria_vqgan", vocab_size=5, hidden_size=size, num_hidden_layers=1)
    model = AutoModel.from_config(config).eval()
    assert size % config.norm_num_groups == 0
    with torch.no_grad():
        output = model(draw(model, 1, 16, 32))
    assert output.codes.shape == (1, 1, 2)
    assert output.reconstruction.isfinite().all()


@over(IMAGES)
@torch.no_grad()
def test_codes_and_vectors_decode_alike(entry):
    model = make(entry)
    pixels = draw(model)
    output = model(pixels)
    assert output.codes.shape == (2, 8, 12)
    assert output.codes.max() < model.config.num_codes
    assert output.quantized.shape == output.latents.shape == (2, 8, 8, 12)
    assert output.reconstruction.shape == pixels.shape
    if model.config.used_codes is None:
        assert torch.equal(model.decode_codes(output.codes), output.reconstruction)
    else:
        assert model.decode_codes(output.codes).shape == pixels.shape
    assert torch.equal(model.decode(output.quantized), output.reconstruction)
    total = output.reconstruction_loss + model.config.codebook_weight * output.quantizer_loss
    assert output.loss == total
    error = binary_cross_entropy_with_logits if model.config.task == "segmentation" else l1_loss
    assert output.reconstruction_loss == error(output.reconstruction, pixels)


@over(IMAGES)
@torch.no_grad()
def test_an_image_does_not_see_its_batch(entry):
    model = make(entry, torch.float64)
    pixels = draw(model, 3, dtype=torch.float64)
    together = model(pixels)
    for i in range(3):
        alone = model(pixels[i : i + 1])
        assert torch.equal(alone.codes, together.codes[i : i + 1])
        torch.testing.assert_close(alone.reconstruction, together.reconstruction[i : i + 1], atol=1e-10, rtol=0)


@over(IMAGES)
@torch.no_grad()
def test_channels_last_changes_nothing(entry):
    model = make(entry)
    pixels = draw(model)
    plain = model(pixels)
    model.to(memory_format=torch.channels_last)
    found = model(pixels.to(memory_format=torch.channels_last))
    assert torch.equal(plain.codes, found.codes)
    torch.testing.assert_close(plain.latents, found.latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(plain.reconstruction, found.reconstruction, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(2, 2), (2, 34), (18, 6), (16, 16)], ids=str)
@torch.no_grad()
def test_sizes_that_are_not_square(size):
    model = make()
    output = model(draw(model, 1, *size))
    assert output.codes.shape == (1, size[0] // 2, size[1] // 2)
    assert output.reconstruction.shape[2:] == size


@over(IMAGES)
def test_files(entry, tmp_path):
    model = make(entry)
    if entry.fields.get("quantizer") == "ema":
        model.train()(draw(model))
        model.eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is NoriaVQGANModel
    assert again.config.to_json_string() == type(model).config_class.from_pretrained(tmp_path).to_json_string()
    pixels = draw(model)
    torch.manual_seed(5)
    before = model(pixels).to_tuple()
    torch.manual_seed(5)
    after = again.eval()(pixels).to_tuple()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@over(IMAGES)
@torch.no_grad()
def test_half_precision_leaves_the_codebook_single(entry, tmp_path):
    model = make(entry)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    for name, x in half.state_dict().items():
        single = torch.float32 if name.startswith("quantizer.") else torch.bfloat16
        assert x.dtype == (single if model.state_dict()[name].is_floating_point() else torch.int64), name
    pixels = draw(model)
    output = half(pixels)
    assert output.reconstruction.dtype == output.quantized.dtype == torch.bfloat16
    assert output.loss.dtype == output.quantizer_loss.dtype == output.reconstruction_loss.dtype == torch.float32
    assert output.reconstruction.isfinite().all()
    assert half.decode_codes(output.codes).isfinite().all()
    plain = make(entry).to(torch.bfloat16)
    assert plain(pixels).reconstruction.isfinite().all()


@over(IMAGES)
def test_autocast(entry):
    model = make(entry).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(draw(model))
    assert output.loss.dtype == output.quantizer_loss.dtype == output.reconstruction_loss.dtype == torch.float32
    output.loss.backward()
    learning = [x for x in model.parameters() if x.requires_grad]
    assert all(x.grad is not None and x.grad.isfinite().all() for x in learning)


@over(IMAGES)
def test_what_files_lack_is_initialised(entry, tmp_path):
    """Loading begins without memory: a tensor that the files lack must get its first values, buffers too."""
    model = make(entry)
    model.save_pretrained(tmp_path)
    kept = {name: x for name, x in model.state_dict().items() if name.startswith("encoder.conv_in")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    found = AutoModel.from_pretrained(tmp_path).eval()
    for name, x in found.state_dict().items():
        assert x.isfinite().all(), name
        assert x.abs().max() <= 60, name
    if model.config.quantizer in ("vq", "ema"):
        assert found.quantizer.embedding.weight.abs().max() <= 1 / model.config.vocab_size
    assert torch.equal(found.encoder.conv_in.weight, model.encoder.conv_in.weight)
    for (name, x), (_, y) in zip(found.quantizer.named_buffers(), make(entry).quantizer.named_buffers(), strict=True):
        assert x.shape == y.shape
        assert name == "embed_avg" or torch.equal(x, y), name
    assert found(draw(model)).loss.isfinite()


def test_initial_weights_follow_a_given_range():
    model = make(hidden_size=64, initializer_range=0.3)
    assert model.encoder.mid.block_1.conv1.weight.std().item() == pytest.approx(0.3, rel=0.05)


def backward(model, pixels, seed=3):
    torch.manual_seed(seed)
    model.zero_grad()
    output = model(pixels)
    output.loss.backward()
    return output.loss.detach(), {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@over(IMAGES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(entry, reentrant):
    model = make(entry, torch.float64, dropout=0.2).train()
    pixels = draw(model, dtype=torch.float64)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    loss, gradients = backward(model, pixels)
    assert gradients.keys() == {name for name, x in model.named_parameters() if x.requires_grad}
    model.load_state_dict(state)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    again, recomputed = backward(model, pixels)
    assert again == loss
    for name, x in gradients.items():
        torch.testing.assert_close(recomputed[name], x, atol=1e-12, rtol=1e-9)


def test_gradient_checkpointing_computes_levels_again():
    model = make().train()
    runs = []
    model.decoder.up[0].register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable()
    model(draw(model)).loss.backward()
    assert len(runs) == 2


def test_a_seed_repeats_training():
    model = make(IMAGES[2]).train()
    first, second = (backward(model, draw(model))[0] for _ in range(2))
    assert first == second


def test_the_loss_falls():
    model = make(code_size=4, hidden_size=8).train()
    pixels = draw(model, 4, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(pixels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_attention_stands_where_its_resolution_is_listed():
    fields = {"channel_multipliers": [1, 1, 1], "image_size": 32, "num_hidden_layers": 1}
    names = make(attention_resolutions=[16], **fields).state_dict().keys()
    levels = {name.partition(".attn.")[0] for name in names if ".attn." in name}
    assert levels == {"encoder.down.1", "decoder.up.1"}
    assert any("mid.attn_1" in name for name in names)
    names = make(attention_resolutions=[16], attention="none", **fields).state_dict().keys()
    assert not any(".attn" in name for name in names)


def test_the_last_layer_writes_the_pixels():
    model = make()
    assert model.last_layer is model.decoder.conv_out.weight
    assert model.get_input_embeddings() is model.encoder.conv_in


def test_tuples_where_asked_for():
    model = make()
    pixels = draw(model)
    codes, quantized, *_ = model.encode(pixels, return_dict=False)
    assert codes.ndim == 3
    assert model(pixels, return_dict=False)[1].shape == pixels.shape
    assert torch.equal(model.decode(quantized), model(pixels).reconstruction)
    model.config.return_dict = False
    assert isinstance(model(pixels), tuple)


@over([IMAGES[0], IMAGES[2], IMAGES[4]])
def test_remote_code_gives_the_same(entry, tmp_path):
    model = make(entry)
    model.save_pretrained(tmp_path)
    hub.write_code(model, tmp_path)
    reference = json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"]
    copy = get_class_from_dynamic_module(reference, tmp_path).from_pretrained(tmp_path).eval()
    assert type(copy) is not NoriaVQGANModel
    with torch.no_grad():
        assert torch.equal(copy(draw(model)).reconstruction, model(draw(model)).reconstruction)


def check_compiled(entry, backend):
    torch.compiler.reset()
    model = make(entry)
    pixels = draw(model)
    expected = model.encode(pixels)
    encode = torch.compile(model.encode, fullgraph=True, backend=backend)
    decode = torch.compile(model.decode_codes, fullgraph=True, backend=backend)
    found = encode(pixels)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.quantizer_loss, expected.quantizer_loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(decode(found.codes), model.decode_codes(expected.codes), atol=1e-4, rtol=0)


@over(IMAGES[:6])
@torch.no_grad()
def test_one_graph(entry):
    check_compiled(entry, "eager")


@pytest.mark.slow
@torch.no_grad()
def test_compiled_whole():
    check_compiled(PLAIN, "inductor")


def bad_image(**changes):
    shape = {"batch": 1, "channels": 3, "height": 16, "width": 16} | changes
    return torch.zeros(*shape.values())


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (bad_image(channels=4), "must have 3 channels for this model, not 4"),
        (bad_image(height=15), r"height 15 and width 16 .* multiples of 2, .* crop or resize to 14 x 16"),
        (bad_image(height=1, width=1), "resize to 2 x 2"),
        (bad_image(height=0), "height 0 and width 16"),
        (torch.zeros(3, 16, 16), r"of shape \(b 3 h w\), not \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating-point numbers from -1 to 1, not torch.uint8"),
        (torch.full((1, 3, 16, 16), torch.nan), "must be finite"),
        (torch.full((1, 3, 16, 16), torch.inf), "must be finite"),
    ],
)
def test_images_that_do_not_fit(pixels, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model.encode(pixels)
    with pytest.raises(ValueError, match=message):
        model(pixels)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[[0, 61]]]), r"lie in 0\.\.60, not be 61"),
        (torch.tensor([[[-1, 60]]]), r"lie in 0\.\.60, not be -1"),
        (torch.tensor([[0, 1]]), r"of shape \(b h w\), not \(1, 2\)"),
        (torch.zeros(1, 2, 2), "must be integers, not torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), "must be integers, not torch.bool"),
    ],
)
def test_codes_that_there_are_not(codes, message):
    with pytest.raises(ValueError, match=message):
        make().decode_codes(codes)


def test_latents_of_another_width():
    with pytest.raises(ValueError, match=r"of shape \(b 8 h w\), not \(1, 4, 2, 2\)"):
        make().decode(torch.zeros(1, 4, 2, 2))


def test_other_channels_out_than_in_have_no_loss():
    model = make(output_channels=1)
    pixels = draw(model)
    assert model.decode_codes(model.encode(pixels).codes).shape == (2, 1, 16, 24)
    with pytest.raises(ValueError, match="reads 3 channels and writes 1"):
        model(pixels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_num_groups": 5}, r"`norm_num_groups` \(5\) must divide `hidden_size` \(24\)"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1, not 0"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be at least 0, not -1"),
        ({"channel_multipliers": []}, r"a positive number for each level, not \[\]"),
        ({"channel_multipliers": [2, 1], "num_hidden_layers": 0}, r"all .* but the last must be 1, not \[2, 1\]"),
        ({"attention": "half"}, "one of full, linear, none, not 'half'"),
        ({"quantizer": "vqvae"}, "one of vq, ema, gumbel, fsq, not 'vqvae'"),
        ({"task": "depth"}, "one of image, segmentation, not 'depth'"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, not 1.0"),
        ({"ema_decay": 1.5}, "`ema_decay` must be at least 0 and below 1, not 1.5"),
        ({"gumbel_temperature": 0}, "`gumbel_temperature` must be positive, not 0"),
        ({"commitment_cost": -1}, "`commitment_cost` must be at least 0, not -1"),
        (
            {"quantizer": "gumbel", "normalize_codes": True},
            """belongs to the quantizers "vq" and "ema", not to 'gumbel'""",
        ),
        ({"fsq_levels": [8, 8]}, """belong to the quantizer "fsq", not to 'vq'"""),
        ({"quantizer": "fsq", "fsq_levels": [8, 5]}, r"`vocab_size` \(61\): it is 40"),
        ({"quantizer": "fsq", "vocab_size": 8, "fsq_levels": [4, 2]}, "must be 3 at least"),
        ({"used_codes": [1, 61]}, "numbers from 0 to 60"),
        ({"used_codes": [1, 1]}, "each code once"),
        ({"used_codes": [1, 2], "unknown_code": 2}, r"lie in 0\.\.1, .* not 2"),
        ({"unknown_code": "nearest"}, """"random" or "extra", not 'nearest'"""),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        NoriaVQGANConfig(**TINY | fields)


@pytest.mark.parametrize("size", [2, 61, 1000, 1024, 8192, 16384])
def test_levels_are_found_for_any_codebook(size):
    if size > 2:
        levels = NoriaVQGANConfig(vocab_size=size, quantizer="fsq").fsq_levels
        assert torch.tensor(levels).prod() == size
        assert min(levels) >= 3


def test_words_of_other_families_are_ignored_once(caplog):
    config = AutoConfig.for_model("noria_vqgan", num_attention_heads=4)
    assert "VQGAN has no `num_attention_heads`: the value 4 is ignored" in caplog.text
    assert not hasattr(config, "num_attention_heads")
