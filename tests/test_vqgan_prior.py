"""The second stage of VQGAN: conditions, loss, sampling and windows, over priors of several families."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from architectures import IMAGE_PRIORS
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, GPT2Config, LogitsProcessorList, Trainer, TrainingArguments

import noria
import noria.hub
from noria import NoriaVQGANConfig, NoriaVQGANPriorConfig, NoriaVQGANPriorForImageGeneration
from noria.modeling.code_sampling import OnlyCodes, SeededChoice
from noria.modeling.image.conditions import coordinate_ids, make_coordinates
from noria.modeling.image.token_order import to_tokens, token_order

CODES = 23
STAGE = {
    "vocab_size": CODES,
    "hidden_size": 8,
    "num_hidden_layers": 0,
    "channel_multipliers": [1, 1],
    "attention_resolutions": [],
    "image_size": 8,
    "latent_channels": 4,
    "code_size": 4,
}
MAPS = STAGE | {"vocab_size": 11, "num_channels": 5, "task": "segmentation"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2}
PRIORS = {
    "gpt2": {"num_attention_heads": 2},
    "llama": {"num_attention_heads": 2, "intermediate_size": 24},
    "mamba": {},
    "noria_retnet": {"num_attention_heads": 2},
    "noria_linear_transformer": {"num_attention_heads": 2},
    "noria_roformer": {"num_attention_heads": 2},
    "noria_mamba": {},
}
CONDITIONS = {
    "none": {},
    "class": {"num_labels": 3},
    "coordinates": {},
    "codes": {"condition_vqgan_config": MAPS},
    "tokens": {"condition_length": 6},
}
# GPT-2's own dropout would make two runs of training differ.
EXACT = {"gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}}
every_prior = pytest.mark.parametrize("prior", ["gpt2", "mamba", "noria_retnet", "noria_linear_transformer"])
every_condition = pytest.mark.parametrize("kind", CONDITIONS)


def make_config(prior: str = "gpt2", kind: str = "class", **fields) -> NoriaVQGANPriorConfig:
    stage = {"vqgan_config": STAGE, "condition": kind, "prior_config": {"model_type": prior, **EXACT.get(prior, {})}}
    return NoriaVQGANPriorConfig(**stage | SIZES | PRIORS[prior] | CONDITIONS[kind] | fields)


def make_model(prior: str = "gpt2", kind: str = "class", **fields) -> NoriaVQGANPriorForImageGeneration:
    """A model whose large weights make every code's distribution far from uniform."""
    torch.manual_seed(0)
    model = NoriaVQGANPriorForImageGeneration(make_config(prior, kind, **fields)).eval()
    with torch.no_grad():
        for name, weight in model.prior.named_parameters():
            if name.endswith(("lm_head.weight", "wte.weight", "embed_tokens.weight", "embeddings.weight")):
                weight.normal_(std=0.5)
    return model


def make_condition(kind: str, batch: int = 2):
    torch.manual_seed(1)
    return {
        "none": None,
        "class": torch.arange(batch) % 3,
        "coordinates": torch.rand(batch, 1, 8, 8),
        "codes": F.one_hot(torch.randint(0, 5, (batch, 8, 8)), 5).movedim(-1, 1).float(),
        "tokens": torch.randint(0, CODES, (batch, 6)),
    }[kind]


def make_codes(batch: int = 2, height: int = 4, width: int = 4, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, CODES, (batch, height, width), generator=torch.Generator().manual_seed(seed))


def test_defaults_make_a_model_that_generates():
    config = AutoConfig.for_model("noria_vqgan_prior", hidden_size=16, num_hidden_layers=1, grid_size=3)
    assert (config.prior_config.model_type, config.vocab_size, config.sequence_length) == ("gpt2", 1024, 9)
    model = AutoModel.from_config(config)
    assert type(model) is NoriaVQGANPriorForImageGeneration
    assert model.generate_codes(batch_size=2).shape == (2, 3, 3)
    assert noria.ARCHITECTURES["noria_vqgan_prior"].models == {"ForImageGeneration": type(model)}


@pytest.mark.parametrize("entry", IMAGE_PRIORS, ids=str)
def test_every_entry_of_the_table_learns_and_generates(entry):
    model = entry.model("ForImageGeneration", dtype=torch.float64)
    kind, size = model.config.condition, tuple(model.config.grid_size)
    condition = {"class": [0, 3], "codes": torch.randint(0, 61, (2, *size))}.get(kind)
    codes = model.generate_codes(condition, batch_size=2, seed=1)
    assert codes.shape == (2, *size)
    assert torch.equal(codes, model.generate_codes(condition, batch_size=2, seed=1, use_cache=False))
    loss = model(codes=codes, condition=condition).loss
    loss.backward()
    assert loss.dtype == torch.float64
    assert all(value.grad is not None for value in model.parameters())


ALONE = """
import sys
sys.modules["noria"] = None  # as where it is not installed
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
codes, images = torch.load(sys.argv[1] + "/expected.pt")
assert torch.equal(model.generate_codes([0, 1], seed=2), codes)
assert torch.equal(model.generate_images([0, 1], seed=2), images)
"""


def test_flat_code_generates_without_noria(tmp_path):
    model = make_model()
    noria.hub.save(model, tmp_path / "model")
    expected = (model.generate_codes([0, 1], seed=2), model.generate_images([0, 1], seed=2))
    torch.save(expected, tmp_path / "model" / "expected.pt")
    places = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", ALONE, str(tmp_path / "model")]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_sizes_follow_from_the_stages():
    config = make_config(kind="codes")
    assert (config.grid_size, config.vocab_size, config.condition_length) == ([4, 4], CODES, 16)
    assert (config.prior_config.vocab_size, config.prior_config.n_positions) == (CODES, 31)
    assert make_config(kind="class", condition_offset=CODES).prior_config.vocab_size == CODES + 3
    assert make_config(kind="coordinates").prior_config.vocab_size == CODES + 1
    assert make_config(kind="codes", condition_size=4).condition_length == 4
    config = NoriaVQGANPriorConfig(prior_config={"n_embd": 48, "n_layer": 3}, intermediate_size=64)
    assert (config.hidden_size, config.num_hidden_layers, config.prior_config.n_inner) == (48, 3, 64)
    assert config.prior_config.activation_function == "gelu"
    prior = make_config("noria_retnet").prior_config
    assert (prior.eos_token_id, prior.bos_token_id, prior.hidden_size) == (None, None, 16)


@every_condition
def test_configurations_survive_their_files(kind, tmp_path):
    config = make_config("noria_retnet", kind, token_order="z_curve", keep_probability=0.9)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert type(again.prior_config) is type(config.prior_config)
    assert isinstance(again.vqgan_config, NoriaVQGANConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "text"}, "`condition` must be one of none, class, coordinates, codes, tokens, not 'text'"),
        ({"token_order": "hilbert"}, "`token_order` must be one of row, .*, not 'hilbert'"),
        ({"token_order": [0, 1, 1]}, "each place of the map, 0 to 15, once"),
        ({"keep_probability": 1.5}, "`keep_probability` must lie in 0..1, not 1.5"),
        ({"grid_size": [4, 0]}, r"`grid_size` must be a positive height and width, not \[4, 0\]"),
        ({"vocab_size": 9}, r"`vocab_size` \(9\) is not the first stage's: 23 codes"),
        ({"num_unmasked": -1}, "`num_unmasked` must be at least 0, not -1"),
        ({"condition_length": 2}, "`condition_length` must be 1 here, with `condition` 'class', not 2"),
        ({"kind": "tokens", "condition_length": None}, '"tokens" needs `condition_length`'),
        ({"prior_config": GPT2Config(vocab_size=9, n_embd=16, n_layer=2, n_head=2)}, r"\(9\) must hold all 23 codes"),
        ({"prior_config": {"model_type": "gpt2", "n_positions": 9}}, r"\(9\) must hold 1 tokens .* at least 16"),
        ({"prior_config": {"model_type": "noria_nothing"}}, "a `model_type` that nothing here knows: 'noria_nothing'"),
        ({"vqgan_config": {"model_type": "vit"}}, "`vqgan_config` must be of type 'noria_vqgan', not 'vit'"),
        ({"prior_config": {"n_embd": 24}}, "`hidden_size` is 16 here and 24 in `prior_config`"),
        ({"prior_config": {"hidden_size": 24}}, "`hidden_size` is 16 here and 24 in `prior_config`"),
        ({"prior_config": GPT2Config(n_embd=24)}, "`hidden_size` is 16 here and 24 in `prior_config`"),
    ],
)
def test_wrong_configurations_are_named(fields, message):
    kind = fields.pop("kind", "class")
    if kind not in CONDITIONS:
        fields, kind = {"condition": kind}, "class"
    with pytest.raises(ValueError, match=message):
        make_config(kind=kind, **fields)


@every_prior
@pytest.mark.parametrize("order", ["row", "spiral_in"])
def test_the_loss_falls_on_the_images_codes_alone(prior, order):
    model = make_model(prior, token_order=order, condition_offset=CODES)
    codes, condition = make_codes(), make_condition("class")
    with torch.no_grad():
        output = model(codes=codes, condition=condition)
        tokens = to_tokens(codes, token_order(order, 4, 4))
        whole = torch.cat([condition[:, None] + CODES, tokens], dim=1)
        logits = model.prior(whole[:, :-1]).logits
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert model(codes=codes, condition=condition, return_loss=False).loss is None


@every_condition
def test_pixels_and_codes_are_one(kind):
    model, pixels = make_model(kind=kind), torch.rand(2, 3, 8, 8) * 2 - 1
    codes, condition = model.vqgan.encode(pixels).codes, make_condition(kind)
    with torch.no_grad():
        assert torch.equal(
            model(pixel_values=pixels, condition=condition).loss, model(codes=codes, condition=condition).loss
        )
        assert torch.equal(
            model(codes=codes.flatten(1), condition=condition).logits, model(codes=codes, condition=condition).logits
        )


def test_targets_leave_out_what_is_not_to_be_learned():
    model, codes, targets = make_model(), make_codes(), make_codes()
    targets[:, 2:] = -100
    with torch.no_grad():
        output = model(codes=codes, condition=[0, 1], targets=targets)
    expected = F.cross_entropy(output.logits[:, :8].flatten(0, 1), codes.flatten(1)[:, :8].flatten())
    torch.testing.assert_close(output.loss, expected)


@every_prior
def test_a_code_changes_nothing_before_it(prior):
    model, codes = make_model(prior), make_codes(1)
    changed = codes.clone()
    changed[0, 2, 1] = (changed[0, 2, 1] + 1) % CODES
    with torch.no_grad():
        one, other = (model(codes=x, condition=0).logits for x in (codes, changed))
    assert torch.equal(one[:, :10], other[:, :10])
    assert not torch.allclose(one[:, 10:], other[:, 10:])


def test_conditions_become_their_tokens():
    model = make_model(kind="class", id2label={0: "faces", 1: "hands", 2: "food"}, condition_offset=CODES)
    assert model.condition_tokens(["food", "faces"], 2, (4, 4)).tolist() == [[CODES + 2], [CODES]]
    assert model.condition_tokens(torch.tensor([[1], [2]]), 2, (4, 4)).tolist() == [[CODES + 1], [CODES + 2]]
    assert model.condition_tokens(1, 3, (4, 4)).tolist() == [[CODES + 1]] * 3
    assert torch.equal(model.generate_codes(torch.tensor(1)), model.generate_codes("hands"))
    assert make_model(kind="none", sos_token=7).condition_tokens(None, 2, (4, 4)).tolist() == [[7], [7]]
    model = make_model(kind="codes")
    pixels = make_condition("codes")
    codes = model.condition_vqgan.encode(pixels).codes
    assert torch.equal(model.condition_tokens(pixels, 2, (4, 4)), codes)
    assert torch.equal(model.condition_tokens(codes.flatten(1), 2, (4, 4)), codes)
    again = make_model(kind="codes", condition_vqgan_config=None, condition_size=4)
    small = again.vqgan.encode(torch.ones(1, 3, 8, 8)[..., ::2, ::2]).codes
    assert torch.equal(again.condition_tokens(torch.ones(1, 3, 8, 8), 1, (4, 4)), small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coordinates_are_counted_in_single_precision(dtype):
    coordinates = make_coordinates(2, 64, 64)
    ids = coordinate_ids(coordinates, 1024, 16)
    means = coordinates.double().unflatten(2, (4, 16)).unflatten(4, (4, 16)).mean((3, 5))[:, 0]
    assert torch.equal(ids, (1024 * means).round().long())
    assert coordinate_ids(torch.ones(1, 1, 16, 16), 1024, 16).item() == 1024
    model = make_model(kind="coordinates", coordinate_levels=1024).to(dtype)
    shifted = model.condition_tokens(make_coordinates(1, 8, 8), 1, (4, 4))
    assert torch.equal(shifted, coordinate_ids(make_coordinates(1, 8, 8), 1024, 2))
    assert torch.equal(shifted, model.condition_tokens(None, 1, (4, 4)))


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        ("class", None, "needs a `condition` of the kind 'class'"),
        ("class", [0, 3], "classes are numbers from 0 to 2: 3 is none"),
        ("class", [-1, 0], "classes are numbers from 0 to 2: -1 is none"),
        ("class", [0, 1, 2], "count different images|3 conditions for 2 images"),
        ("class", torch.ones(2, 3), r"classes are integers of shape \(batch\), not torch.float32 of shape \(2, 3\)"),
        ("class", ["cat", "dog"], "unknown class 'cat'; known: LABEL_0"),
        ("coordinates", torch.rand(2, 3, 8, 8), r"\(batch, 1, height, width\), not \(2, 3, 8, 8\)"),
        ("coordinates", torch.rand(2, 1, 7, 8), r"\(7x8\) must be multiples of 2"),
        ("coordinates", torch.rand(2, 1, 8, 8) + 1, "between 0 and 1"),
        ("coordinates", torch.rand(2, 1, 8, 16), "coordinates for 4x8 codes do not fit a map of 4x4"),
        ("codes", torch.full((2, 4, 4), 11), "codes of the condition are numbers from 0 to 10: 11 is none"),
        ("codes", torch.zeros(2, 5, dtype=torch.long), "5 codes are no square"),
        ("codes", torch.rand(2, 3, 8, 8), "channels"),
        (
            "tokens",
            torch.zeros(2, 5, dtype=torch.long),
            r"6 integers for each image, not torch.int64 of shape \(2, 5\)",
        ),
        ("tokens", torch.full((2, 6), CODES), "numbers from 0 to 22: 23 is none"),
    ],
)
def test_wrong_conditions_are_named(kind, condition, message):
    model = make_model(kind=kind)
    with pytest.raises(ValueError, match=message):
        model(codes=make_codes(), condition=condition)
    with pytest.raises(ValueError, match=message):
        model.generate_codes(condition, batch_size=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of `pixel_values` and `codes`"),
        ({"codes": make_codes(), "pixel_values": torch.zeros(2, 3, 8, 8)}, "exactly one of"),
        ({"codes": make_codes() + 1}, "codes are numbers from 0 to 22: 23 is none"),
        ({"codes": make_codes().float()}, "codes are integers"),
        ({"codes": make_codes()[0, 0]}, r"\(batch, height, width\)"),
        ({"codes": make_codes(2, 5, 4)}, "20 tokens are too many for the prior, whose .* is 16"),
    ],
)
def test_wrong_images_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(condition=[0, 1], **inputs)


def test_without_a_first_stage_there_are_codes_and_no_pixels():
    model = make_model(vqgan_config=None, vocab_size=CODES, grid_size=[2, 3])
    assert model.generate_codes([0, 1]).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="no first stage"):
        model.generate_images([0, 1])
    with pytest.raises(ValueError, match="no first stage"):
        model(pixel_values=torch.zeros(2, 3, 8, 8), condition=[0, 1])


@every_prior
@pytest.mark.parametrize("order", ["row", "subsample"])
def test_greedy_codes_are_the_best_ones_with_cache_or_without(prior, order):
    model = make_model(prior, token_order=order)
    codes = model.generate_codes([0, 1, 2])
    assert codes.shape == (3, 4, 4)
    assert torch.equal(codes, model.generate_codes([0, 1, 2], use_cache=False))
    with torch.no_grad():
        logits = model(codes=codes, condition=[0, 1, 2]).logits
    assert torch.equal(logits[..., :CODES].argmax(-1), to_tokens(codes, token_order(order, 4, 4)))


@every_condition
def test_every_kind_of_condition_generates_codes_and_images(kind):
    model, condition = make_model(kind=kind), make_condition(kind)
    codes = model.generate_codes(condition, batch_size=2, num_beams=2)
    assert codes.shape == (2, 4, 4)
    assert int(codes.max()) < CODES
    images = model.generate_images(condition, batch_size=2, num_beams=2)
    assert torch.equal(images, model.vqgan.decode_codes(codes))
    assert images.shape == (2, 3, 8, 8)


def test_ids_of_conditions_are_not_written():
    model = make_model(condition_offset=CODES)
    with torch.no_grad():
        model.prior.lm_head.weight[CODES:] = model.prior.lm_head.weight[:3] * 5
    assert int(model.generate_codes([0], codes_only=False).max()) >= CODES
    assert int(model.generate_codes([0]).max()) < CODES
    assert int(model.generate_codes([0], seed=1, temperature=5.0).max()) < CODES


@every_prior
def test_a_seed_makes_the_same_image_in_every_batch(prior):
    model = make_model(prior)
    together = model.generate_codes([0, 1, 2], seed=[5, 6, 7], top_k=9, temperature=0.8)
    assert torch.equal(together, model.generate_codes([0, 1, 2], seed=5, top_k=9, temperature=0.8))
    alone = model.generate_codes([2], seed=7, top_k=9, temperature=0.8)
    assert torch.equal(together[2:], alone)
    assert not torch.equal(model.generate_codes([2, 2], seed=7)[0], model.generate_codes([2, 2], seed=7)[1])


def test_seeded_draws_follow_the_distribution_and_the_warpers():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5]).expand(4000, -1)
    chosen = SeededChoice(range(4000))(torch.zeros(4000, 1).long(), scores).argmax(-1)
    shares = torch.bincount(chosen, minlength=5) / 4000
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=0.03, rtol=0)
    assert OnlyCodes(3)(None, scores[:1])[0, 3:].tolist() == [-math.inf] * 2
    model = make_model()
    best = model.generate_codes([0, 1])
    assert torch.equal(model.generate_codes([0, 1], seed=3, top_k=1), best)
    assert torch.equal(model.generate_codes([0, 1], seed=3, top_p=1e-6), best)
    assert not torch.equal(model.generate_codes([0, 1], seed=3), best)
    assert torch.equal(model.generate_codes([0, 1], do_sample=True, top_k=1), best)


def test_sampling_knows_all_codes_unless_it_is_told_otherwise():
    """generate() itself would take the best 50."""
    model = make_model(vqgan_config=None, vocab_size=200, grid_size=1, kind="none")
    torch.nn.init.zeros_(model.prior.lm_head.weight)
    drawn = model.generate_codes(batch_size=2000, do_sample=True)
    assert len(drawn.unique()) > 190
    assert len(model.generate_codes(batch_size=500, do_sample=True, top_p=0.1).unique()) <= 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1]}, "1 seeds for 2 images"),
        ({"seed": 1, "num_beams": 2}, "not to a search with 2 beams"),
        ({"seed": 1, "do_sample": False}, "`seed` belongs to sampling"),
        ({"seed": 1, "top_h": 0.5}, r"`top_h` \(0.5\) is not known"),
        ({"max_new_tokens": 3}, r"`max_new_tokens` \(3\) cannot be chosen here"),
        ({"eos_token_id": 3}, r"`eos_token_id` \(3\) cannot be chosen here"),
        ({"return_dict_in_generate": True}, "`return_dict_in_generate`"),
        ({"num_return_sequences": 2}, "`batch_size`"),
        ({"batch_size": 3}, "count different images"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, not 0"),
        ({"size": (0, 4)}, r"`size` must be a positive height and width, not \(0, 4\)"),
        ({"size": (3, 4)}, "a map of 3x4 codes is smaller than the window of 4x4"),
        ({"size": 5, "window": 5}, "25 tokens are too many for the prior"),
        ({"codes": make_codes(2, 2, 3)}, r"rows \(batch, k, 4\) or tokens .* \(2, 2, 3\)"),
        ({"codes": make_codes(2, 5, 4)}, r"\(2, 5, 4\)"),
        ({"codes": make_codes(2, 2, 4) + 1}, "23 is none"),
        ({"colour": 3}, "colour"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model().generate_codes([0, 1], **arguments)


@pytest.mark.parametrize("order", ["row", "alternate", "z_curve"])
def test_what_is_begun_is_continued(order):
    model = make_model(token_order=order)
    whole = model.generate_codes([0, 1])
    tokens = to_tokens(whole, token_order(order, 4, 4))
    assert torch.equal(model.generate_codes([0, 1], codes=tokens[:, :7]), whole)
    assert torch.equal(model.generate_codes([0, 1], codes=whole), whole)
    begun = make_codes(2, 2, 4)
    completed = model.generate_codes([0, 1], codes=begun)
    assert torch.equal(completed[:, :2], begun)
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    tokens = to_tokens(model.encode(pixels), token_order(order, 4, 4))
    expected = model.generate_codes([0, 1], codes=tokens[:, :8])
    assert torch.equal(model.generate_images([0, 1], pixel_values=pixels), model.vqgan.decode_codes(expected))
    assert torch.equal(
        model.generate_images([0, 1], pixel_values=pixels, keep=1), model.vqgan.decode_codes(model.encode(pixels))
    )


def test_beginnings_that_do_not_begin_are_refused():
    with pytest.raises(ValueError, match="in the order 'spiral_in' the first codes are no whole rows"):
        make_model(token_order="spiral_in").generate_codes([0, 1], codes=make_codes(2, 2, 4))
    with pytest.raises(ValueError, match="`keep` is a share"):
        make_model().generate_images([0, 1], pixel_values=torch.zeros(2, 3, 8, 8), keep=2)


def slide(model, ids, size, window):
    """The published loop: one whole forward for each code, in a window about it; the best code is taken."""
    codes = torch.zeros(ids.shape[0], *size, dtype=torch.long)
    for i in range(size[0]):
        for j in range(size[1]):
            local = [
                at if at <= side // 2 else side - (length - at) if length - at < side // 2 else side // 2
                for at, length, side in zip((i, j), size, window, strict=True)
            ]
            rows, columns = (slice(at - b, at - b + side) for at, b, side in zip((i, j), local, window, strict=True))
            seen = torch.cat([ids[:, rows, columns].flatten(1), codes[:, rows, columns].flatten(1)], dim=1)
            with torch.no_grad():
                logits = model.prior(seen[:, :-1]).logits[:, -window[0] * window[1] :, :CODES]
            codes[:, i, j] = logits.unflatten(1, window)[:, local[0], local[1]].argmax(-1)
    return codes


@pytest.mark.parametrize("prior", ["gpt2", "noria_retnet"])
@pytest.mark.parametrize("size", [(4, 4), (6, 7), (4, 9)])
def test_larger_maps_are_written_as_published(prior, size):
    model = make_model(prior, "coordinates")
    ids = model.condition_tokens(None, 1, size)
    assert ids.shape == (1, *size)
    assert torch.equal(model.generate_codes(size=size), slide(model, ids, size, (4, 4)))
    image = model.generate_images(size=size)
    assert image.shape == (1, 3, 2 * size[0], 2 * size[1])


@every_condition
@pytest.mark.parametrize("sampling", [{"seed": 4}, {"do_sample": True}, {}])
def test_a_window_that_covers_the_map_changes_nothing(kind, sampling, monkeypatch):
    """Also where the codes are written one by one, as in a window that slides."""
    model, condition = make_model(kind=kind), make_condition(kind)
    torch.manual_seed(5)
    plain = model.generate_codes(condition, batch_size=2, **sampling)

    def one_by_one(size, window, ids, done):
        return [noria.modeling.image.sliding_window.Run(0, 0, place, 1) for place in range(done, 16)]

    monkeypatch.setattr(model, "plan", one_by_one)
    torch.manual_seed(5)
    assert torch.equal(model.generate_codes(condition, batch_size=2, **sampling), plain)


def test_windows_ask_for_rows_and_for_conditions_of_the_maps_size():
    with pytest.raises(ValueError, match=r"needs a window of its own size: .* 'spiral_out'"):
        make_model(token_order="spiral_out").generate_codes([0], size=(5, 5))
    with pytest.raises(ValueError, match="needs a condition of as many, not of 4x4"):
        make_model(kind="codes").generate_codes(make_condition("codes"), size=(5, 5))
    small = make_model().generate_codes([0, 1], size=(3, 5), window=(3, 2), seed=1)
    assert small.shape == (2, 3, 5)
    whole = make_model("noria_retnet").generate_codes([0, 1], size=(5, 6), window=(5, 6))  # no positions that end
    assert whole.shape == (2, 5, 6)


@pytest.mark.parametrize("prior", ["gpt2", "llama", "noria_roformer"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_unmasked_tokens_see_one_another(prior, attention):
    model = make_model(prior, "codes", num_unmasked=16)
    model.prior.set_attn_implementation(attention)
    plain = make_model(prior, "codes")
    plain.load_state_dict(model.state_dict())
    condition, codes = torch.randint(0, 11, (1, 4, 4)), make_codes(1)
    changed = condition.clone()
    changed[0, 3, 3] = (changed[0, 3, 3] + 1) % 11
    with torch.no_grad():
        ids = torch.cat([condition.flatten(1), codes.flatten(1)], dim=1)
        place = torch.arange(31)
        seen = (place[None] <= place[:, None]) | ((place[None] < 16) & (place[:, None] < 16))
        mask = torch.zeros(1, 1, 31, 31).masked_fill(~seen, torch.finfo(torch.float32).min)
        expected = plain.prior(ids[:, :-1], attention_mask=mask).logits[:, 15:]
        found = model(codes=codes, condition=condition).logits
        first = [
            model.prior(torch.cat([x.flatten(1), codes.flatten(1)[:, :-1]], 1)).logits[:, 0]
            for x in (condition, changed)
        ]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain(codes=codes, condition=condition).logits)
    assert not torch.equal(*first)
    codes = model.generate_codes(condition)
    assert torch.equal(codes, model.generate_codes(condition, use_cache=False))
    if prior != "noria_roformer":
        still = {"cache_implementation": "static", "disable_compile": True}
        assert torch.equal(codes, model.generate_codes(condition, **still))


def test_unmasked_tokens_need_softmax_attention():
    for prior, name in (("noria_retnet", "NoriaRetNetForCausalLM"), ("mamba", "MambaForCausalLM")):
        with pytest.raises(ValueError, match=rf"`num_unmasked` \(16\) needs softmax attention .* {name} has not"):
            make_model(prior, "codes", num_unmasked=16)


def test_corruption_replaces_what_is_read_while_training_only():
    model, codes = make_model(keep_probability=0.5), make_codes(8)
    intact = make_model()
    with torch.no_grad():
        assert torch.equal(model(codes=codes, condition=0).logits, intact(codes=codes, condition=0).logits)
        model.train(), intact.train()
        assert not torch.equal(model(codes=codes, condition=0).logits, intact(codes=codes, condition=0).logits)
        model.config.keep_probability = 1.0
        assert torch.equal(model(codes=codes, condition=0).logits, intact(codes=codes, condition=0).logits)


@every_prior
def test_models_survive_their_files(prior, tmp_path):
    model = make_model(prior, "codes")
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert type(again.prior) is type(model.prior)
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        inputs = {"pixel_values": pixels, "condition": make_condition("codes")}
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    trained = {name.partition(".")[0] for name, value in again.named_parameters() if value.requires_grad}
    assert trained == {"prior"}
    assert not again.train().vqgan.training
    assert not again.condition_vqgan.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prior", ["gpt2", "noria_retnet", "noria_mamba"])
def test_half_precision_generates(prior, dtype, tmp_path):
    model = make_model(prior, "coordinates")
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    codes = make_codes()
    with torch.no_grad():
        loss, exact = half(codes=codes).loss, model(codes=codes).loss
    assert loss.dtype == torch.float32
    assert abs(float(loss - exact)) < 0.05
    images = half.generate_images(batch_size=2, seed=1)
    assert images.dtype == dtype
    assert bool(images.isfinite().all())


@pytest.mark.parametrize("prior", ["gpt2", "noria_retnet"])
def test_lora_and_checkpointing(prior):
    model = make_model(prior)
    inputs = {"codes": make_codes(), "condition": [0, 1]}
    model.train()
    model(**inputs).loss.backward()
    exact = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert exact
    assert all(name.startswith("prior.") for name in exact)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    for name, value in model.named_parameters():
        if name in exact:
            torch.testing.assert_close(value.grad, exact[name], rtol=1e-4, atol=1e-6)
    model.gradient_checkpointing_disable()
    targets = ["c_attn", "c_fc"] if prior == "gpt2" else ["q_proj", "v_proj"]
    adapted = get_peft_model(model.eval(), LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    adapted.train()
    loss = adapted(**inputs).loss
    loss.backward()
    grads = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert grads
    assert all(
        "lora" in name and value.grad is not None for name, value in adapted.named_parameters() if name in grads
    )
    adapted.eval()
    codes = adapted.base_model.model.generate_codes([0, 1])
    merged = adapted.merge_and_unload()
    alone = get_peft_model(make_model(prior).prior, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=2))
    within = make_model(prior)
    expected, within.prior = within.generate_codes([0, 1]), alone.eval()
    assert torch.equal(within.generate_codes([0, 1]), expected)  # LoRA begins with nothing
    torch.testing.assert_close(within(**inputs).loss, make_model(prior)(**inputs).loss)
    assert torch.equal(merged.generate_codes([0, 1]), codes)


def test_a_trainer_takes_rows_of_codes_and_conditions(tmp_path):
    model = make_model("noria_retnet")
    rows = [{"codes": make_codes(1, seed=i)[0], "condition": i % 3} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=100,
    )
    frozen = {name: value.clone() for name, value in model.vqgan.state_dict().items()}
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.2
    assert all(torch.equal(value, frozen[name]) for name, value in model.vqgan.state_dict().items())
    trainer.save_model(str(tmp_path / "last"))
    assert AutoModel.from_pretrained(tmp_path / "last").generate_codes([1]).shape == (1, 4, 4)


@pytest.mark.parametrize("prior", ["noria_retnet", "noria_linear_transformer", "noria_mamba"])
def test_recurrent_priors_remember_as_much_for_large_maps_as_for_small(prior):
    bytes_held = []
    for side in (4, 8):
        model = make_model(prior, vqgan_config=None, vocab_size=CODES, grid_size=side)
        cache = noria.NoriaCache(model.prior.config)
        model.generate_codes([0], past_key_values=cache)
        assert cache.get_seq_length() == side * side
        bytes_held.append(cache.nbytes)
    assert bytes_held[0] == bytes_held[1] > 0


@pytest.mark.parametrize("prior", ["gpt2", "noria_linear_transformer"])
def test_the_loss_reaches_the_entropy_of_a_markov_source(prior):
    """Codes that follow a chain of four states: the loss becomes (H(start) + 8 H(step)) / 9."""
    torch.manual_seed(0)
    steps = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.1, 0.8], [0.25] * 4, [0.9, 0.05, 0.03, 0.02]])
    start = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def draw(count: int) -> torch.Tensor:
        tokens = [torch.multinomial(start.expand(count, -1), 1)]
        for _ in range(8):
            tokens.append(torch.multinomial(steps[tokens[-1][:, 0]], 1))
        return torch.cat(tokens, dim=1).view(count, 3, 3)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.log()).sum(-1)

    state, expected = start, entropy(start)
    for _ in range(8):
        expected, state = expected + state @ entropy(steps), state @ steps
    fields = {"vqgan_config": None, "vocab_size": 4, "grid_size": 3, "hidden_size": 32, "num_hidden_layers": 1}
    model = make_model(prior, "none", **fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 220)
    for _ in range(220):
        optimizer.zero_grad()
        model(codes=draw(128)).loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        loss = model.eval()(codes=draw(4000)).loss
    assert abs(float(loss - expected / 9)) < 0.025 * float(expected / 9)
    drawn = model.generate_codes(batch_size=2000, do_sample=True).flatten(1)
    pairs = torch.zeros(4, 4).index_put_((drawn[:, :-1].flatten(), drawn[:, 1:].flatten()), torch.ones(16000), True)
    torch.testing.assert_close(pairs / pairs.sum(1, keepdim=True), steps, atol=0.06, rtol=0)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("prior", ["gpt2", "noria_retnet"])
def test_the_forward_is_one_graph(prior):
    model, inputs = (
        make_model(prior, "coordinates"),
        {"codes": make_codes(), "condition": make_condition("coordinates")},
    )
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
        torch.testing.assert_close(compiled.loss, model(**inputs).loss)


def test_processors_of_the_caller_stay():
    model = make_model()

    class Last(OnlyCodes):
        def __call__(self, input_ids, scores):
            return scores.index_fill(-1, torch.arange(CODES - 1), -math.inf)

    for extra in ({}, {"seed": 1}):
        codes = model.generate_codes([0], logits_processor=LogitsProcessorList([Last(0)]), **extra)
        assert codes.unique().tolist() == [CODES - 1]
