"""Mamba-2 of state-spaces/mamba and of transformers: the same outputs and states, and every byte back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, Mamba2Config, Mamba2ForCausalLM, Mamba2Model

from noria import NoriaCache, NoriaMamba2ForCausalLM, NoriaMamba2Model
from noria.conversion.convert import convert
from noria.conversion.export import export

GOLDEN = Path(__file__).parent / "golden"
CASES = ["mamba2", "mamba2_groups"]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """golden(case) -> (close(found, expected), recorded tensors, the converted folder, the model)"""
    place, made = tmp_path_factory.mktemp("mamba2"), {}

    def load(case: str):
        if case not in made:
            tolerance = json.loads((GOLDEN / case / "case.json").read_text(encoding="utf-8"))["tolerance"]
            folder = convert("mamba_ssm", GOLDEN / case, place / case)
            model = AutoModelForCausalLM.from_pretrained(folder).eval()

            def close(found: torch.Tensor, expected: torch.Tensor) -> None:
                torch.testing.assert_close(found, expected, rtol=0, atol=tolerance["expected_abs"])

            made[case] = close, load_file(GOLDEN / case / "inputs_outputs.safetensors"), folder, model
        return made[case]

    return load


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_are_the_originals(case, golden):
    close, recorded, _, model = golden(case)
    assert isinstance(model, NoriaMamba2ForCausalLM)
    branches = []
    hooks = [layer.mixer.register_forward_hook(lambda m, i, o: branches.append(o[0])) for layer in model.model.layers]
    outputs = model(recorded["input_ids"], output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    close(outputs.logits, recorded["logits"])
    close(outputs.hidden_states[-1], recorded["final_hidden"])
    for layer, branch in enumerate(branches):
        close(branch, recorded[f"mixer_out.{layer}"])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_prefill_steps_and_states_are_the_originals(case, golden):
    close, recorded, _, model = golden(case)

    def close_states(moment: str) -> None:
        for layer, kept in enumerate(cache.layers):
            inputs, memory = kept.state
            close(inputs.transpose(1, 2), recorded[f"{moment}.conv_state.{layer}"][..., 1:])
            close(memory.transpose(2, 3), recorded[f"{moment}.ssm_state.{layer}"])

    ids, cache = recorded["input_ids"], NoriaCache(model.config)
    prefill = model(ids[:, :-4], past_key_values=cache, use_cache=True).logits
    close(prefill[:, -1], recorded["prefill_logits_last"])
    close_states("prefill")
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in ids[:, -4:].split(1, dim=1)]
    close(torch.cat(steps, 1), recorded["logits"][:, -4:])
    if "step_logits" in recorded:  # the original takes no single steps with several groups
        close(torch.cat(steps, 1), recorded["step_logits"])
        close_states("final")


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_the_originals_logits_alone(case, side, golden):
    close, recorded, _, model = golden(case)
    pad = (3, 0) if side == "left" else (0, 3)
    ids = torch.nn.functional.pad(recorded["input_ids"], pad, value=5)
    mask = torch.nn.functional.pad(torch.ones_like(recorded["input_ids"]), pad)
    logits = model(ids, attention_mask=mask).logits
    close(logits[:, 3:] if side == "left" else logits[:, :-3], recorded["logits"])


@pytest.mark.parametrize("case", CASES)
def test_every_byte_comes_back(case, golden, tmp_path):
    _, _, folder, _ = golden(case)
    export("mamba_ssm", folder, tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["config.json", "pytorch_model.bin"]
    assert (tmp_path / "back" / "config.json").read_bytes() == (GOLDEN / case / "config.json").read_bytes()
    paths = (GOLDEN / case, tmp_path / "back")
    before, after = (torch.load(path / "pytorch_model.bin", weights_only=True) for path in paths)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_a_bare_state_dict_needs_the_number_of_groups(golden, tmp_path):
    shutil.copy(GOLDEN / "mamba2_groups" / "pytorch_model.bin", tmp_path / "alone.bin")
    with pytest.raises(ValueError, match="does not say d_state, ngroups"):
        convert("mamba_ssm", tmp_path / "alone.bin", tmp_path / "model")
    convert("mamba_ssm", tmp_path / "alone.bin", tmp_path / "model", {"ssm_cfg": {"ngroups": 2}})
    found, expected = (
        json.loads((path / "config.json").read_text()) for path in (tmp_path / "model", golden("mamba2_groups")[2])
    )
    assert found == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba1"}}, "ssm_cfg.layer is 'Mamba1', but the tensors are Mamba2's"),
        ({"ssm_cfg": {"d_state": 8}}, "d_state is 8 and ngroups 1, but the tensors hold 16 in all"),
        ({"ssm_cfg": {"dt_rank": 8}}, "ssm_cfg has dt_rank, which Mamba2 does not take"),
        ({"ssm_cfg": {"headdim": 8}}, "headdim is 8 in the config, but the tensors say 16"),
        ({"ssm_cfg": {"dt_limit": 0.1}}, "dt_limit is 0.1, not two numbers"),
        ({"ssm_cfg": {"rmsnorm": False}}, "rmsnorm is False in the config, but the tensors say True"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx=.* cannot be converted"),
    ],
)
def test_contradictions_are_named(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("mamba_ssm", GOLDEN / "mamba2", tmp_path / "model", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.layers.1.mixer.D"), r"backbone.layers.1.mixer.D"),
        (lambda t: t.pop("backbone.layers.0.mixer.A_log"), r"layers.0.mixer.A_log"),
        (lambda t: t.update({"backbone.layers.0.mixer.extra": torch.zeros(1)}), "mixer.extra"),
        (
            lambda t: t.update({"backbone.layers.0.mixer.conv1d.weight": torch.zeros(127, 1, 4)}),
            "fit no Mamba-2 layer",
        ),
    ],
)
def test_foreign_tensors_are_named(change, message, tmp_path):
    tensors = torch.load(GOLDEN / "mamba2" / "pytorch_model.bin", weights_only=True)
    change(tensors)
    (tmp_path / "source").mkdir()
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin")
    options = {"ssm_cfg": {"d_state": 16, "ngroups": 1}}
    with pytest.raises(ValueError, match=message):
        convert("mamba_ssm", tmp_path / "source", tmp_path / "model", options)


def upstream(head: type, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 8, "n_groups": 2}
    config = Mamba2Config(**sizes | {"state_size": 10} | fields)
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


VARIANTS = [
    {},
    {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True, "state_size": 5, "conv_kernel": 3},
    {"expand": 3, "head_dim": 12, "layer_norm_epsilon": 1e-3, "hidden_act": "gelu", "time_step_limit": (0.01, 0.5)},
]


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS, ids=["plain", "biases", "sizes"])
def test_a_folder_of_transformers_converts_and_comes_back(fields, tmp_path, tokens):
    theirs, ids = upstream(Mamba2ForCausalLM, **fields), tokens(2, 13)
    theirs.save_pretrained(tmp_path / "source")
    ours = AutoModelForCausalLM.from_pretrained(convert("transformers", tmp_path / "source", tmp_path / "model"))
    assert isinstance(ours, NoriaMamba2ForCausalLM)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=5e-6)
    export("transformers", tmp_path / "model", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    again = Mamba2ForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_a_bare_trunk_of_transformers_converts(tmp_path, tokens):
    theirs, ids = upstream(Mamba2Model), tokens(2, 13)
    theirs.save_pretrained(tmp_path / "source")
    ours = AutoModel.from_pretrained(convert("transformers", tmp_path / "source", tmp_path / "model"))
    assert isinstance(ours, NoriaMamba2Model)
    torch.testing.assert_close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    export("transformers", tmp_path / "model", tmp_path / "back")


def test_a_folder_that_contradicts_itself_is_refused(tmp_path):
    upstream(Mamba2ForCausalLM).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="state_size is 8 and n_groups 2, but the tensors hold 20 in all"):
        convert("transformers", tmp_path / "source", tmp_path / "model", {"state_size": 8})
    with pytest.raises(ValueError, match="num_heads is 4 in the config, but the tensors say 6"):
        convert("transformers", tmp_path / "source", tmp_path / "model", {"num_heads": 4})
