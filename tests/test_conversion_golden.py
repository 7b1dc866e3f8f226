"""Converted models give what the original code gave, and are exported without the loss of a byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.modeling.linear_transformer import NoriaLinearTransformerModel
from noria.modeling.retnet import NoriaRetNetForCausalLM

GOLDEN = Path(__file__).parent / "golden"
RETNET = ["retnet", "retnet_swish_tied", "retnet_deepnorm_half"]
CAUSAL = ["linear_transformer_causal", "linear_transformer_widths"]
LINEAR = ["linear_transformer", *CAUSAL]
FORMATS = {"retnet": "torchscale", "linear_transformer": "fast_transformers"}


def format_of(case: str) -> str:
    return next(name for prefix, name in FORMATS.items() if case.startswith(prefix))


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """golden(case) -> (case.json, recorded tensors, the converted folder)"""
    folder = tmp_path_factory.mktemp("golden")

    def load(case: str):
        about = json.loads((GOLDEN / case / "case.json").read_text())
        if not (folder / case).exists():
            convert(format_of(case), GOLDEN / case, folder / case, about["config"])
        return about, load_file(GOLDEN / case / "inputs_outputs.safetensors"), folder / case

    return load


def close(actual: torch.Tensor, expected: torch.Tensor, about: dict) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=about["tolerance"]["expected_abs"])


@torch.no_grad()
@pytest.mark.parametrize("case", RETNET)
def test_retnet_gives_the_originals_logits_and_hidden_states(case, golden):
    about, recorded, folder = golden(case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, NoriaRetNetForCausalLM)
    outputs = model(recorded["input_ids"], output_hidden_states=True)
    close(outputs.logits, recorded["logits"], about)
    close(outputs.hidden_states[0], recorded["inner_states.0"], about)
    close(outputs.hidden_states[1], recorded["inner_states.1"], about)
    close(outputs.hidden_states[2], model.model.norm(recorded["inner_states.2"]), about)


@torch.no_grad()
@pytest.mark.parametrize("case", RETNET)
def test_retnet_gives_the_originals_recurrent_logits_and_state(case, golden):
    about, recorded, folder = golden(case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cache, logits = None, []
    for token in recorded["input_ids"].split(1, dim=1):
        outputs = model(token, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    close(torch.cat(logits, dim=1), recorded["recurrent_logits"], about)


@torch.no_grad()
@pytest.mark.parametrize("case", RETNET)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_the_originals_logits_alone(case, side, golden):
    about, recorded, folder = golden(case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pad = (3, 0) if side == "left" else (0, 3)
    ids = torch.nn.functional.pad(recorded["input_ids"], pad)
    mask = torch.nn.functional.pad(torch.ones_like(recorded["input_ids"]), pad)
    logits = model(ids, attention_mask=mask).logits
    close(logits[:, 3:] if side == "left" else logits[:, :-3], recorded["logits"], about)


@torch.no_grad()
@pytest.mark.parametrize("case", LINEAR)
def test_linear_transformer_gives_the_originals_outputs(case, golden):
    about, recorded, folder = golden(case)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, NoriaLinearTransformerModel)
    assert model.config.vocab_size == 0
    outputs = model(inputs_embeds=recorded["x"], output_hidden_states=True)
    close(outputs.last_hidden_state, recorded["y"], about)
    close(outputs.hidden_states[1], recorded["hidden_states.1"], about)
    real = torch.arange(recorded["x"].shape[1]) < recorded["lengths"][:, None]
    masked = model(inputs_embeds=recorded["x"], attention_mask=real.long()).last_hidden_state
    close(masked[real], recorded["y_length_masked"][real], about)


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL)
def test_causal_linear_transformer_steps_like_the_original(case, golden):
    about, recorded, folder = golden(case)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    cache, steps = None, []
    for x in recorded["x"].split(1, dim=1):
        outputs = model(inputs_embeds=x, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        steps.append(outputs.last_hidden_state)
    close(torch.cat(steps, dim=1), recorded["recurrent_y"], about)
    for layer in range(2):
        memory = cache.layers[layer].state[0]
        close(memory[..., :-1], recorded[f"recurrent_state.{layer}.S"], about)
        close(memory[..., -1], recorded[f"recurrent_state.{layer}.Z"], about)


def flatten(content, path=()):
    if isinstance(content, dict):
        for key, item in content.items():
            yield from flatten(item, (*path, key))
    elif isinstance(content, torch.Tensor):
        yield path, content


@pytest.mark.parametrize("case", RETNET + LINEAR)
def test_export_gives_every_byte_back(case, golden, tmp_path):
    _, _, folder = golden(case)
    export(format_of(case), folder, tmp_path / "back")
    (original,) = (GOLDEN / case).glob("*.pt")
    assert [file.name for file in (tmp_path / "back").iterdir()] == [original.name]
    one = torch.load(original, weights_only=True)
    other = torch.load(tmp_path / "back" / original.name, weights_only=True)
    assert type(one) is type(other)
    assert getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
    before, after = dict(flatten(one)), dict(flatten(other))
    assert list(before) == list(after)
    for path, tensor in before.items():
        assert tensor.dtype == after[path].dtype
        assert torch.equal(tensor.view(torch.uint8), after[path].view(torch.uint8)), path
    if "cfg" in one:
        assert one["cfg"] == other["cfg"]
        assert one["extra_state"] == other["extra_state"]
        embedding, head = (other["model"][f"decoder.{name}.weight"] for name in ("embed_tokens", "output_projection"))
        tied = one["cfg"]["model"].get("share_decoder_input_output_embed", False)
        assert (embedding.data_ptr() == head.data_ptr()) == tied


@pytest.mark.parametrize("case", RETNET)
def test_configuration_in_the_file_is_enough(case, golden, tmp_path):
    _, _, folder = golden(case)
    convert("torchscale", GOLDEN / case / "checkpoint_last.pt", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == (folder / "config.json").read_text()


def test_a_trained_change_is_exported_tied_weights_included(golden, tmp_path):
    _, _, folder = golden("retnet_swish_tied")
    convert("torchscale", GOLDEN / "retnet_swish_tied", tmp_path / "model")
    model = NoriaRetNetForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(tmp_path / "model")
    export("torchscale", tmp_path / "model", tmp_path / "back")
    before = torch.load(GOLDEN / "retnet_swish_tied" / "checkpoint_last.pt", weights_only=True)["model"]
    after = torch.load(tmp_path / "back" / "checkpoint_last.pt", weights_only=True)["model"]
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        torch.testing.assert_close(after[name], before[name] + 1)
    torch.testing.assert_close(
        after["decoder.layers.1.ffn.gate.weight"], 2 * before["decoder.layers.1.ffn.gate.weight"]
    )


def test_the_record_accounts_for_every_tensor(golden):
    _, _, folder = golden("retnet_swish_tied")
    record = json.loads((folder / "conversion.json").read_text())
    names = set(torch.load(GOLDEN / "retnet_swish_tied" / "checkpoint_last.pt", weights_only=True)["model"])
    ruled = {"decoder." + name for entry in record["rules"] for name in entry["source"]}
    assert ruled == names
    held = {name for entry in record["rules"] for name in entry["target"]}
    assert held == set(load_file(folder / "model.safetensors"))
    kept = {"decoder.output_projection.weight", "decoder.retnet_rel_pos.angle", "decoder.retnet_rel_pos.decay"}
    assert set(record["extras"]) == set(load_file(folder / "upstream_extras.safetensors")) == kept
    assert all(record["extras"].values()), "each has its reason"
    assert len(record["files"][0]["sha256"]) == 64
    assert record["settings"]["activation_fn"] == {"value": "swish", "from": "config"}
