"""RWKV-4 checkpoints: agreement with the package `rwkv` and with transformers, exact return, halved weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, RwkvConfig, RwkvForCausalLM

from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.modeling.rwkv import NoriaRWKVForCausalLM, NoriaRWKVModel

GOLDEN = Path(__file__).parent / "golden" / "rwkv4"
FILE = "RWKV-4-tiny.pth"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """case.json, the recorded tensors and the converted folder."""
    folder = tmp_path_factory.mktemp("rwkv") / "converted"
    convert("rwkv", GOLDEN, folder)
    return json.loads((GOLDEN / "case.json").read_text()), load_file(GOLDEN / "inputs_outputs.safetensors"), folder


def close(found, expected, about) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=about["tolerance"]["expected_abs"])


@torch.no_grad()
@pytest.mark.parametrize("cut", [24, 1, 13])
def test_logits_and_states_are_the_originals(golden, cut):
    about, recorded, folder = golden
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, NoriaRWKVForCausalLM)
    cache = None
    for part in recorded["input_ids"][None].split(cut, dim=1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
    close(out.logits[0], recorded["logits"][-part.shape[1] :], about)
    check_states(cache, recorded, "state", about)
    out = model(recorded["continuation_ids"][None], past_key_values=cache, use_cache=True)
    close(out.logits[0], recorded["continuation_logits"], about)
    check_states(cache, recorded, "continuation_state", about)


def check_states(cache, recorded, name, about) -> None:
    """The package's flat list is ours: last token, numerator, denominator, maximum, last token of each layer."""
    parts = [part[0] for layer in cache.layers for part in layer.state]
    assert len(parts) == 5 * len(cache.layers)
    for place, part in enumerate(parts):
        close(part, recorded[f"{name}.{place}"], about)


def same_tensors(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_come_back_as_they_were(tmp_path, dtype):
    state = torch.load(GOLDEN / FILE, map_location="cpu")
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    torch.save(state, tmp_path / "model.pth")
    convert("rwkv", tmp_path / "model.pth", tmp_path / "noria", {"n_layer": 7, "n_embd": 28})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "noria").dtype == dtype
    export("rwkv", tmp_path / "noria", tmp_path / "back")
    same_tensors(torch.load(tmp_path / "back" / "model.pth"), state)


def test_decays_stay_in_float32(tmp_path):
    convert("rwkv", GOLDEN / FILE, tmp_path / "noria")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "noria", dtype=torch.bfloat16)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {f"model.layers.{i}.mixer.time_{name}" for i in range(7) for name in ("decay", "first")}


def edited(tmp_path, change) -> Path:
    state = torch.load(GOLDEN / FILE, map_location="cpu")
    change(state)
    torch.save(state, tmp_path / "edited.pth")
    return tmp_path / "edited.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.3.ln1.bias"), r"lacks 1 tensors: blocks.3.ln1.bias"),
        (lambda state: state.pop("blocks.0.att.time_decay"), "not an RWKV"),
        (lambda state: state.update({"blocks.0.att.ln_x.weight": torch.ones(28)}), r"5\.0 or 5\.1"),
        (lambda state: state.update({"blocks.0.ffnPre.key.weight": torch.ones(2, 2)}), "second feed-forward"),
        (lambda state: state.update({"_strategy": "cpu fp32"}), "prepared it"),
        (lambda state: state.update({"blocks.1.att.odd": torch.ones(3)}), r"no rule .* blocks.1.att.odd"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert("rwkv", edited(tmp_path, change), tmp_path / "noria")
    assert not (tmp_path / "noria").exists()


def test_a_vocabulary_beside_the_file_becomes_the_tokenizer(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / FILE).write_bytes((GOLDEN / FILE).read_bytes())
    lines = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
    (source / "rwkv_vocab_v20230424.txt").write_text("".join(lines))
    convert("rwkv", source, tmp_path / "noria")
    assert AutoTokenizer.from_pretrained(tmp_path / "noria")("CAB").input_ids == [68, 66, 67]
    export("rwkv", tmp_path / "noria", tmp_path / "back")
    assert (tmp_path / "back" / "rwkv_vocab_v20230424.txt").read_text() == "".join(lines)


def test_a_contradicted_size_is_named(tmp_path):
    with pytest.raises(ValueError, match="n_layer is 5 in the config, but the tensors say 7"):
        convert("rwkv", GOLDEN, tmp_path / "noria", {"n_layer": 5})


def folder_model(layers: int) -> RwkvForCausalLM:
    torch.manual_seed(layers)
    config = RwkvConfig(vocab_size=50, hidden_size=24, num_hidden_layers=layers, context_length=32, use_cache=False)
    model = RwkvForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
            elif "time" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("layers", "ran", "found"), [(4, True, 0), (8, False, 0), (8, True, 6), (13, True, 6)])
def test_folders_of_transformers_with_and_without_halved_weights(tmp_path, layers, ran, found):
    model, ids = folder_model(layers), torch.arange(1, 23).view(2, 11)
    expected = model.train()(ids).logits
    if ran:
        model.eval()(ids)
    model.save_pretrained(tmp_path / "original")
    convert("transformers", tmp_path / "original", tmp_path / "noria")
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "noria").eval()
    assert mine.config.rescale_every == found
    torch.testing.assert_close(mine(ids).logits, expected, rtol=1e-5, atol=1e-5)
    export("transformers", tmp_path / "noria", tmp_path / "back")
    weights = "model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (tmp_path / "original" / weights).read_bytes()


@torch.no_grad()
def test_where_weights_cannot_tell_the_caller_does(tmp_path):
    model, ids = folder_model(7), torch.arange(1, 12)[None]
    for layer, block in enumerate(model.rwkv.blocks):
        block.attention.output.weight.mul_(1 + layer % 3)
    expected = model.train()(ids).logits
    model.eval()(ids)
    model.save_pretrained(tmp_path / "original")
    with pytest.raises(ValueError, match="rescale_every=0 if not"):
        convert("transformers", tmp_path / "original", tmp_path / "noria")
    convert("transformers", tmp_path / "original", tmp_path / "noria", {"rescale_every": 6})
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "noria").eval()
    torch.testing.assert_close(mine(ids).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_trunk_of_transformers_without_its_head(tmp_path):
    model, ids = folder_model(3).rwkv.train(), torch.arange(1, 12)[None]
    model.save_pretrained(tmp_path / "original")
    convert("transformers", tmp_path / "original", tmp_path / "noria")
    mine = AutoModel.from_pretrained(tmp_path / "noria").eval()
    assert isinstance(mine, NoriaRWKVModel)
    torch.testing.assert_close(mine(ids).last_hidden_state, model(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_an_epsilon_that_only_some_norms_would_have_is_refused(tmp_path):
    folder_model(2).save_pretrained(tmp_path / "original")
    path = tmp_path / "original" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_epsilon": 1e-3}))
    with pytest.raises(ValueError, match="layer_norm_epsilon"):
        convert("transformers", tmp_path / "original", tmp_path / "noria")


def test_a_folder_without_time_mix_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    save_file({"rwkv.embeddings.weight": torch.ones(5, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not an RWKV"):
        convert("transformers", tmp_path, tmp_path / "noria")
