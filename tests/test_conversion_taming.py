"""Converted VQGANs give what taming-transformers gave, and go back to it without the loss of a byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from noria.configuration.vqgan import NoriaVQGANConfig
from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.raw_bytes import same_bytes
from noria.conversion.torch_file import read_torch
from noria.modeling.image.patch_discriminator import PatchDiscriminator
from noria.modeling.vqgan import NoriaVQGANModel

GOLDEN = Path(__file__).parent / "golden"
CASES = ["vqgan", "vqgan_gumbel", "vqgan_nin", "vqgan_pickled_callbacks", "vqgan_seg"]
ADVERSARIAL = ["vqgan", "vqgan_nin", "vqgan_pickled_callbacks"]


def load_model(folder: Path) -> NoriaVQGANModel:
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def close(found: torch.Tensor, expected: torch.Tensor, about: dict) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=about["tolerance"]["expected_abs"])


@torch.no_grad()
def check_model(model: NoriaVQGANModel, recorded: dict[str, torch.Tensor], about: dict) -> None:
    encoded = model.encode(recorded["pixel_values"])
    assert torch.equal(encoded.codes, recorded["indices"])
    close(encoded.latents, recorded["prequant"], about)
    close(encoded.quantized, recorded["quant"], about)
    close(model.decode(encoded.quantized), recorded["reconstruction"], about)
    close(model.decode_codes(recorded["indices"]), recorded["reconstruction"], about)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_pixels_are_the_originals(case, taming):
    about, recorded, folder = taming(case)
    model = load_model(folder)
    assert isinstance(model, NoriaVQGANModel)
    assert model.config.image_size == about["config"]["params"]["ddconfig"]["resolution"]
    check_model(model, recorded, about)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("told", ["nothing", "arguments"])
def test_the_yaml_is_not_needed(case, told, taming, tmp_path):
    about, recorded, folder = taming(case)
    shutil.copy(GOLDEN / case / "last.ckpt", tmp_path / "last.ckpt")
    config = about["config"] if told == "arguments" else {}
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model", config)
    model = load_model(tmp_path / "model")
    check_model(model, recorded, about)
    one, other = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "model"))
    # The size of images shows in no tensor, and so neither does what a level's resolution is called.
    hidden = ("image_size", "attention_resolutions", "kl_weight") if told == "nothing" else ()
    assert {name: one[name] for name in one if name not in hidden} == {
        name: other[name] for name in other if name not in hidden
    }


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case != "vqgan_gumbel"])
@pytest.mark.parametrize("legacy", [True, False])
def test_the_loss_of_codes_is_the_originals(case, legacy, taming, tmp_path):
    about, recorded, _ = taming(case)
    convert("taming", GOLDEN / case, tmp_path / "model", {"legacy_commitment": legacy})
    output = load_model(tmp_path / "model")(recorded["pixel_values"])
    close(output.quantizer_loss, recorded[f"emb_loss_legacy{int(legacy)}"], about)
    if legacy and case == "vqgan_seg":
        close(output.loss, recorded["loss"], about)
    if "nll_loss" in recorded:
        close(output.reconstruction_loss, recorded["nll_loss"], about)


@torch.no_grad()
def test_gumbels_loss_is_the_originals(taming):
    _, recorded, folder = taming("vqgan_gumbel")
    model = load_model(folder)
    assert model.config.kl_weight == 1e-8
    torch.testing.assert_close(model(recorded["pixel_values"]).quantizer_loss, recorded["kl_loss"], rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_the_discriminator_comes_along(case, taming):
    about, recorded, folder = taming(case)
    settings = json.loads((folder / "discriminator.json").read_text())
    assert settings["loss"]["disc_weight"] == 0.8
    discriminator = PatchDiscriminator(**settings["discriminator"]).eval()
    discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"), strict=True)
    discriminator.float()
    for pixels, logits in (("pixel_values", "disc_logits_real"), ("reconstruction", "disc_logits_fake")):
        # One of few layers takes an image that ours thinks too small to be judged.
        close(discriminator.main(recorded[pixels]), recorded[logits], about)


@pytest.mark.parametrize("case", CASES)
def test_export_gives_every_tensor_back(case, taming, tmp_path):
    _, _, folder = taming(case)
    export("taming", folder, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["last.ckpt", "model.yaml"]
    assert (tmp_path / "back" / "model.yaml").read_bytes() == (GOLDEN / case / "model.yaml").read_bytes()
    one, other = (read_torch(place / "last.ckpt").content for place in (GOLDEN / case, tmp_path / "back"))
    assert one["global_step"] == other["global_step"]
    assert list(one["state_dict"]) == list(other["state_dict"])
    assert all(same_bytes(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())


def test_the_losses_networks_can_be_dropped(taming, tmp_path):
    about, recorded, _ = taming("vqgan")
    convert("taming", GOLDEN / "vqgan", tmp_path / "model", {"loss": "drop"})
    assert not {"discriminator.safetensors", "upstream_extras.safetensors"} & {
        path.name for path in (tmp_path / "model").iterdir()
    }
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["dropped"]["loss.discriminator.main.0.weight"] == "loss=drop"
    assert record["settings"]["loss"]["value"] == "drop"
    check_model(load_model(tmp_path / "model"), recorded, about)
    export("taming", tmp_path / "model", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "last.ckpt", weights_only=True)["state_dict"]
    whole = torch.load(GOLDEN / "vqgan" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(back) == [name for name in whole if not name.startswith("loss.")]


def test_half_precision_stays_half(taming):
    _, _, folder = taming("vqgan_nin")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert load_model(folder).config.norm_num_groups == 32


SMALL = {"vocab_size": 12, "hidden_size": 32, "latent_channels": 8, "code_size": 4, "norm_num_groups": 32}
VARIANTS = {
    "three levels, attention above": {
        "channel_multipliers": [1, 2, 1],
        "num_hidden_layers": 1,
        "attention_resolutions": [8],
    },
    "one level": {"channel_multipliers": [2], "num_hidden_layers": 2, "attention_resolutions": [16]},
    "no blocks": {"channel_multipliers": [1, 1], "num_hidden_layers": 0, "attention_resolutions": [8]},
    "depth": {"channel_multipliers": [1, 1], "num_channels": 1, "num_hidden_layers": 1},
    "other channels out": {"channel_multipliers": [1, 1], "output_channels": 5, "num_hidden_layers": 1},
    "without attention": {"channel_multipliers": [1, 1], "attention": "none", "num_hidden_layers": 1},
    "linear attention": {"channel_multipliers": [1, 1], "attention": "linear", "num_hidden_layers": 1},
    "averages": {"channel_multipliers": [1, 1], "resample_with_conv": False, "num_hidden_layers": 1},
    "gumbel": {"channel_multipliers": [1], "quantizer": "gumbel", "latent_channels": 4, "num_hidden_layers": 1},
    "running means": {"channel_multipliers": [1], "quantizer": "ema", "num_hidden_layers": 1},
    "used codes": {"channel_multipliers": [1], "used_codes": [7, 2, 9], "num_hidden_layers": 1},
}


def upstream_state(model: NoriaVQGANModel) -> dict[str, torch.Tensor]:
    """The model's tensors as the upstream names them."""
    codebook = "embed" if model.config.quantizer == "gumbel" else "embedding"
    names = {
        "pre_quantizer.": "quant_conv.",
        "post_quantizer.": "post_quant_conv.",
        "quantizer.embedding.": f"quantize.{codebook}.",
        "quantizer.proj.": "quantize.proj.",
        "quantizer.used_codes.used": "quantize.used",
        "quantizer.": "quantize.embedding.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        begin = next((begin for begin in names if name.startswith(begin)), "")
        state[names.get(begin, "") + name[len(begin) :]] = tensor
    return state


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_tell_the_configuration(variant, tmp_path):
    torch.manual_seed(0)
    config = NoriaVQGANConfig(**{**SMALL, "image_size": 16, "attention_resolutions": [], **VARIANTS[variant]})
    model = NoriaVQGANModel(config).eval()
    torch.save(upstream_state(model), tmp_path / "model.ckpt")
    convert("taming", tmp_path / "model.ckpt", tmp_path / "model")
    found = load_model(tmp_path / "model")
    for name in ("channel_multipliers", "num_hidden_layers", "attention", "quantizer", "used_codes", *SMALL):
        assert getattr(found.config, name) == getattr(config, name), name
    pixels = torch.randn(2, config.num_channels, 16, 16)
    one, other = model.encode(pixels), found.encode(pixels)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(model.decode(one.quantized), found.decode(one.quantized))
    export("taming", tmp_path / "model", tmp_path / "back")
    state, back = upstream_state(model), torch.load(tmp_path / "back" / "model.ckpt", weights_only=True)
    assert list(state) == list(back)
    assert all(same_bytes(tensor, back[name]) for name, tensor in state.items())


def test_codes_in_use_may_be_of_any_integer_type(tmp_path):
    config = NoriaVQGANConfig(**SMALL, channel_multipliers=[1], num_hidden_layers=0, used_codes=[7, 2, 9])
    state = upstream_state(NoriaVQGANModel(config))
    state["quantize.used"] = state["quantize.used"].int()
    torch.save(state, tmp_path / "model.ckpt")
    convert("taming", tmp_path / "model.ckpt", tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.encode(torch.randn(1, 3, 8, 8)).codes.max() < 3
    export("taming", tmp_path / "model", tmp_path / "back")
    assert torch.load(tmp_path / "back" / "model.ckpt", weights_only=True)["quantize.used"].dtype == torch.int32


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_running_means_of_the_weights_can_be_the_model(weights, tmp_path):
    config = NoriaVQGANConfig(**SMALL, channel_multipliers=[1, 1], num_hidden_layers=1)
    one, other = NoriaVQGANModel(config), NoriaVQGANModel(config)
    means = {f"model_ema.{name.replace('.', '')}": x for name, x in upstream_state(other).items()}
    state = (
        upstream_state(one) | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)} | means
    )
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model", {"weights": weights})
    chosen = one if weights == "model" else other
    assert all(
        torch.equal(x, chosen.state_dict()[name]) for name, x in load_model(tmp_path / "model").state_dict().items()
    )
    export("taming", tmp_path / "model", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(back) == list(state)
    assert all(same_bytes(tensor, back[name]) for name, tensor in state.items())


def test_a_prefix_before_all_names_is_kept(taming, tmp_path):
    about, recorded, _ = taming("vqgan")
    state = torch.load(GOLDEN / "vqgan" / "last.ckpt", weights_only=True)["state_dict"]
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model")
    check_model(load_model(tmp_path / "model"), recorded, about)
    assert "main.0.weight" in load_file(tmp_path / "model" / "discriminator.safetensors")
    export("taming", tmp_path / "model", tmp_path / "back")
    assert list(torch.load(tmp_path / "back" / "last.ckpt", weights_only=True)["state_dict"]) == list(state)
