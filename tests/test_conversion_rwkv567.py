"""RWKV-5.2, 6 and 7 checkpoints: agreement with the package `rwkv`, exact return, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from noria import NoriaRWKVForCausalLM
from noria.conversion.convert import convert
from noria.conversion.export import export

GOLDEN = Path(__file__).parent / "golden"
FILES = {5: "RWKV-5-tiny.pth", 6: "RWKV-x060-tiny.pth", 7: "RWKV-x070-tiny.pth"}


def published(version: int) -> dict[str, Tensor]:
    return torch.load(GOLDEN / f"rwkv{version}" / FILES[version], map_location="cpu")


@pytest.fixture(scope="module", params=FILES)
def golden(request, tmp_path_factory):
    """case.json, the recorded tensors and the converted folder of a version."""
    folder = tmp_path_factory.mktemp("rwkv") / "converted"
    source = GOLDEN / f"rwkv{request.param}"
    convert("rwkv", source, folder)
    return json.loads((source / "case.json").read_text()), load_file(source / "inputs_outputs.safetensors"), folder


def close(found: Tensor, expected: Tensor, about: dict) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=about["tolerance"]["expected_abs"])


def load(folder: Path) -> NoriaRWKVForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, NoriaRWKVForCausalLM)
    return model


@torch.no_grad()
@pytest.mark.parametrize("cut", [24, 1, 13])
def test_logits_and_states_are_the_originals(golden, cut):
    about, recorded, folder = golden
    model, cache = load(folder), None
    for part in recorded["input_ids"][None].split(cut, dim=1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        if cut == 1:
            close(out.logits[0, 0], recorded["step_logits"][cache.get_seq_length() - 1], about)
    close(out.logits[0], recorded["logits"][-part.shape[1] :], about)
    check_states(cache, recorded, "state", about, model.config.version)
    out = model(recorded["continuation_ids"][None], past_key_values=cache, use_cache=True)
    close(out.logits[0], recorded["continuation_logits"], about)
    check_states(cache, recorded, "continuation_state", about, model.config.version)


def check_states(cache, recorded, name: str, about: dict, version: int) -> None:
    """The package's flat list is ours: last token, matrix, last token of each layer; version 7's is transposed."""
    parts = [part[0] for layer in cache.layers for part in layer.state]
    assert len(parts) == 3 * len(cache.layers)
    for place, part in enumerate(parts):
        close(part.mT if version == 7 and part.dim() == 3 else part, recorded[f"{name}.{place}"], about)


@torch.no_grad()
def test_padded_rows_are_the_row_alone(golden):
    about, recorded, folder = golden
    model, ids = load(folder), recorded["input_ids"]
    rows = torch.zeros(2, 30, dtype=torch.int64)
    mask = torch.zeros_like(rows)
    rows[0, 6:], rows[1, :24] = ids, ids
    mask[0, 6:], mask[1, :24] = 1, 1
    out = model(rows, attention_mask=mask, use_cache=True)
    for logits in (out.logits[0, 6:], out.logits[1, :24]):
        close(logits, recorded["logits"], about)


def test_the_original_norms_the_embedding_in_the_files_precision_before_version_7(golden):
    about, recorded, folder = golden
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, embedding_norm_dtype=None).eval()
    with torch.no_grad():
        error = (model(recorded["input_ids"][None]).logits[0] - recorded["logits"]).abs().max().item()
    if model.config.version == 7:
        assert error <= about["tolerance"]["expected_abs"]
    else:
        assert about["tolerance"]["fp32_abs"] < error <= 0.01 * about["tolerance"]["scale_logits"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", FILES)
def test_files_come_back_as_they_were(tmp_path, version, dtype):
    state = {name: tensor.to(dtype) for name, tensor in published(version).items()}
    torch.save(state, tmp_path / "model.pth")
    convert("rwkv", tmp_path / "model.pth", tmp_path / "noria", {"n_layer": 2, "head_size": 8})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "noria").dtype == dtype
    export("rwkv", tmp_path / "noria", tmp_path / "back")
    found = torch.load(tmp_path / "back" / "model.pth")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("version", FILES)
def test_decays_stay_in_float32(tmp_path, version):
    convert("rwkv", GOLDEN / f"rwkv{version}", tmp_path / "noria")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "noria", dtype=torch.bfloat16).eval()
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    names = ("decay",) if version == 7 else ("decay", "first")
    assert kept == {f"model.layers.{i}.mixer.time_{name}" for i in range(2) for name in names}
    assert model(torch.arange(1, 9)[None]).logits.isfinite().all()


@pytest.mark.parametrize("version", FILES)
def test_sizes_are_read_from_the_tensors(tmp_path, version):
    convert("rwkv", GOLDEN / f"rwkv{version}", tmp_path / "noria")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "noria").config
    about = json.loads((GOLDEN / f"rwkv{version}" / "case.json").read_text())["config"]
    assert (config.version, config.num_attention_heads, config.head_size) == (version, 4, about["head_size"])
    assert config.intermediate_size == about["dim_ffn"]
    ranks = {5: (None,) * 5, 6: (8, 16, None, None, None), 7: (None, 8, 7, 6, 16)}[version]
    assert ranks == tuple(getattr(config, f"{name}_rank") for name in ("mix", "decay", "rate", "value", "gate"))


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (5, lambda state: state.pop("blocks.0.att.gate.weight"), r"5\.0 or 5\.1"),
        (5, lambda state: state.pop("blocks.1.att.ln_x.bias"), r"lacks 1 tensors|lacks .*blocks.1.att.ln_x.bias"),
        (6, lambda state: state.pop("blocks.0.att.time_maa_w2"), "lacks blocks.0.att.time_maa_w2"),
        (7, lambda state: state.pop("blocks.0.att.g2"), "lacks blocks.0.att.g2"),
        (
            7,
            lambda state: state.update({"blocks.0.ffn.s_emb.weight": torch.ones(3)}),
            r"no rule .* blocks.0.ffn.s_emb",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, version, change, message):
    state = published(version)
    change(state)
    torch.save(state, tmp_path / "edited.pth")
    with pytest.raises(ValueError, match=message):
        convert("rwkv", tmp_path / "edited.pth", tmp_path / "noria")
    assert not (tmp_path / "noria").exists()


def test_contradictions_are_named(tmp_path):
    with pytest.raises(ValueError, match="head_size is 64 in the config, but the tensors say 8"):
        convert("rwkv", GOLDEN / "rwkv6", tmp_path / "noria", {"head_size": 64})
    with pytest.raises(ValueError, match="head_size_divisor=4 cannot be converted"):
        convert("rwkv", GOLDEN / "rwkv6", tmp_path / "noria", {"head_size_divisor": 4})


@torch.no_grad()
def test_hidden_states_are_the_stream_alone(golden):
    _, recorded, folder = golden
    model, ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), recorded["input_ids"][None]
    hidden = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(part.shape) for part in hidden] == [(1, 24, 32)] * 3
    torch.testing.assert_close(hidden[0], model.model.embedding_norm(model.model.embed_tokens(ids)))
    torch.testing.assert_close(hidden[2], model.model(ids).last_hidden_state)
