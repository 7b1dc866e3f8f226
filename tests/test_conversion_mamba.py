"""Mamba of state-spaces/mamba and of transformers: the same outputs and states, and every byte back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, MambaConfig, MambaForCausalLM, MambaModel

from noria import NoriaCache, NoriaMambaForCausalLM, NoriaMambaModel
from noria.conversion.convert import convert
from noria.conversion.export import export

GOLDEN = Path(__file__).parent / "golden" / "mamba1"
ABOUT = json.loads((GOLDEN / "case.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "inputs_outputs.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return convert("mamba_ssm", GOLDEN, tmp_path_factory.mktemp("mamba") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=ABOUT["tolerance"]["expected_abs"])


@torch.no_grad()
def test_logits_and_hidden_states_are_the_originals(model, recorded):
    assert isinstance(model, NoriaMambaForCausalLM)
    branches = []
    hooks = [layer.mixer.register_forward_hook(lambda m, i, o: branches.append(o[0])) for layer in model.model.layers]
    outputs = model(recorded["input_ids"], output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    close(outputs.logits, recorded["logits"])
    close(outputs.hidden_states[-1], recorded["final_hidden"])
    for layer, branch in enumerate(branches):
        close(branch, recorded[f"mixer_out.{layer}"])


def close_states(cache: NoriaCache, recorded, moment: str) -> None:
    for layer, kept in enumerate(cache.layers):
        inputs, memory = kept.state
        close(inputs.transpose(1, 2), recorded[f"{moment}.conv_state.{layer}"][..., 1:])
        close(memory, recorded[f"{moment}.ssm_state.{layer}"])


@torch.no_grad()
def test_prefill_steps_and_states_are_the_originals(model, recorded):
    ids, cache = recorded["input_ids"], NoriaCache(model.config)
    prefill = model(ids[:, :-4], past_key_values=cache, use_cache=True).logits
    close(prefill[:, -1], recorded["prefill_logits_last"])
    close_states(cache, recorded, "prefill")
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in ids[:, -4:].split(1, dim=1)]
    close(torch.cat(steps, 1), recorded["step_logits"])
    close_states(cache, recorded, "final")


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_the_originals_logits_alone(model, recorded, side):
    pad = (3, 0) if side == "left" else (0, 3)
    ids = torch.nn.functional.pad(recorded["input_ids"], pad, value=5)
    mask = torch.nn.functional.pad(torch.ones_like(recorded["input_ids"]), pad)
    logits = model(ids, attention_mask=mask).logits
    close(logits[:, 3:] if side == "left" else logits[:, :-3], recorded["logits"])


def test_padded_rows_of_the_vocabulary_are_kept(folder):
    settings = json.loads((folder / "conversion.json").read_text())["settings"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], settings["vocab_size"]) == (104, {"value": 101, "from": "file"})
    assert config["tie_word_embeddings"]


def test_every_byte_comes_back(folder, tmp_path):
    export("mamba_ssm", folder, tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["config.json", "pytorch_model.bin"]
    assert (tmp_path / "back" / "config.json").read_bytes() == (GOLDEN / "config.json").read_bytes()
    before, after = (torch.load(path / "pytorch_model.bin", weights_only=True) for path in (GOLDEN, tmp_path / "back"))
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_a_bare_state_dict_tells_its_sizes(folder, tmp_path):
    convert("mamba_ssm", GOLDEN / "pytorch_model.bin", tmp_path / "companion")
    shutil.copy(GOLDEN / "pytorch_model.bin", tmp_path / "alone.bin")
    convert("mamba_ssm", tmp_path / "alone.bin", tmp_path / "model")
    for name in ("companion", "model"):
        assert (tmp_path / name / "config.json").read_text() == (folder / "config.json").read_text()


def changed(path: Path, change) -> Path:
    """The recorded checkpoint with its tensors changed, alone in a folder."""
    tensors = torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)
    change(tensors)
    path.mkdir()
    torch.save(tensors, path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg.layer is 'Mamba2', but the tensors are Mamba1's"),
        ({"ssm_cfg": {"d_state": 8}}, "d_state is 8 in the config, but the tensors say 16"),
        ({"ssm_cfg": {"headdim": 8}}, "ssm_cfg has headdim, which Mamba1 does not take"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx=.* cannot be converted"),
        ({"d_intermediate": 64}, "d_intermediate=64 cannot be converted"),
        ({"vocab_size": 90}, "gives 96 rows, but the embedding has 104"),
        ({"n_layer": 3}, "n_layer is 3 in the config, but the tensors say 2"),
        ({"n_layers": 3}, "did you mean n_layer"),
    ],
)
def test_contradictions_are_named(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("mamba_ssm", GOLDEN, tmp_path / "model", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.layers.1.mixer.D"), "backbone.layers.1.mixer.D"),
        (lambda t: t.pop("backbone.layers.0.mixer.A_log"), "layers.0.mixer.A_log"),
        (lambda t: t.update({"backbone.layers.0.mixer.extra": torch.zeros(1)}), "mixer.extra"),
        (lambda t: t.pop("backbone.layers.0.mixer.x_proj.weight"), "no language model of mamba_ssm"),
    ],
)
def test_foreign_tensors_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("mamba_ssm", changed(tmp_path / "source", change), tmp_path / "model")


def test_an_untied_head_is_kept(tmp_path):
    source = changed(tmp_path / "source", lambda t: t.update({"lm_head.weight": t["lm_head.weight"] * 2}))
    model = NoriaMambaForCausalLM.from_pretrained(convert("mamba_ssm", source, tmp_path / "model"))
    assert torch.equal(model.lm_head.weight, 2 * model.model.embed_tokens.weight)


def upstream(head: type, **fields):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, **fields)
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


VARIANTS = [
    {},
    {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "state_size": 5, "conv_kernel": 3},
    {"expand": 3, "time_step_rank": 7, "layer_norm_epsilon": 1e-3, "hidden_act": "gelu"},
]


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS, ids=["plain", "biases", "sizes"])
def test_a_folder_of_transformers_converts_and_comes_back(fields, tmp_path, tokens):
    theirs, ids = upstream(MambaForCausalLM, **fields), tokens(2, 13)
    theirs.save_pretrained(tmp_path / "source")
    ours = AutoModelForCausalLM.from_pretrained(convert("transformers", tmp_path / "source", tmp_path / "model"))
    assert isinstance(ours, NoriaMambaForCausalLM)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=2e-6)
    export("transformers", tmp_path / "model", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    again = MambaForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_a_bare_trunk_of_transformers_converts(tmp_path, tokens):
    theirs, ids = upstream(MambaModel), tokens(2, 13)
    theirs.save_pretrained(tmp_path / "source")
    ours = AutoModel.from_pretrained(convert("transformers", tmp_path / "source", tmp_path / "model"))
    assert isinstance(ours, NoriaMambaModel)
    expected = theirs(ids).last_hidden_state
    torch.testing.assert_close(ours(ids).last_hidden_state, expected, rtol=1e-5, atol=5e-6)
    export("transformers", tmp_path / "model", tmp_path / "back")


def test_a_folder_that_contradicts_itself_is_refused(tmp_path):
    upstream(MambaForCausalLM).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="state_size is 8 in the config, but the tensors say 16"):
        convert("transformers", tmp_path / "source", tmp_path / "model", {"state_size": 8})
    with pytest.raises(ValueError, match="hidden_act is 'sine'"):
        convert("transformers", tmp_path / "source", tmp_path / "model", {"hidden_act": "sine"})
