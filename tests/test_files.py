"""Law 9: what is saved is what is loaded, in one file or many, in any dtype, however the memory was prepared."""

import json

import pytest
import torch
from accelerate import disk_offload
from architectures import CAUSAL, ENTRIES, TINY
from laws import over, same
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

HEADS = [pytest.param(entry, head, id=f"{entry.name}-{head}") for entry in ENTRIES for head in entry.models]


def outputs(model, ids):
    """The first output of any head."""
    choices = type(model).__name__.endswith("ForMultipleChoice")
    return model(ids[None] if choices else ids)[0]


def same_tensors(found, expected) -> None:
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("entry", "head"), HEADS)
@torch.no_grad()
def test_saved_is_loaded(entry, head, tmp_path, tokens) -> None:
    model = entry.model(head, torch.float32)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    same_tensors(loaded, model)
    # A product with one column rounds by where its weights happen to lie in memory; all other outputs are bit-equal.
    tolerance = 1e-6 if head == "ForMultipleChoice" else 0.0
    same(outputs(loaded, tokens(2, 9)), outputs(model, tokens(2, 9)), tolerance)


@over(ENTRIES)
def test_configuration_is_readable_by_anyone(entry, tmp_path) -> None:
    config = entry.config()
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is type(config)
    assert read.to_diff_dict() == config.to_diff_dict()
    # Tools without noria read it through the base class, which refuses names of layers that it does not know.
    assert PreTrainedConfig.from_pretrained(tmp_path).hidden_size == config.hidden_size
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())


@over(CAUSAL)
def test_base_model_and_head_share_files(entry, tmp_path) -> None:
    whole = entry.model(dtype=torch.float32)
    whole.save_pretrained(tmp_path / "whole")
    same_tensors(entry.models["Model"].from_pretrained(tmp_path / "whole"), whole.model)
    whole.model.save_pretrained(tmp_path / "base")
    same_tensors(entry.models["ForCausalLM"].from_pretrained(tmp_path / "base").model, whole.model)


@over(CAUSAL)
def test_sharded(entry, tmp_path) -> None:
    model = entry.model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@over(CAUSAL)
def test_tied_embeddings(entry, tie, tmp_path) -> None:
    model = entry.model(dtype=torch.float32, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is embedding) == tie
    same_tensors(loaded, model)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert len(names) == len(loaded.state_dict()) - tie


def same_distribution(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Constants are equal; large random tensors have the same mean and deviation, to four standard errors."""
    reference = dict(expected.named_parameters())
    for name, tensor in found.named_parameters():
        assert tensor.isfinite().all(), name
        wanted = reference[name]
        if wanted.numel() < 2 or not wanted.std():
            assert torch.equal(tensor, wanted), name
        elif wanted.numel() > 300:
            error = 4 * (2 / wanted.numel()) ** 0.5
            assert abs(tensor.mean() - wanted.mean()) < error * wanted.std(), name
            assert abs(tensor.std() / wanted.std() - 1) < error, name


@over(CAUSAL)
def test_made_on_meta(entry, tokens) -> None:
    reference = entry.model(dtype=torch.float32)
    with torch.device("meta"):
        model = entry.models["ForCausalLM"](entry.config())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan"))
    model.init_weights()
    same_distribution(model, reference)
    assert model(tokens(2, 9)).logits.isfinite().all()


@over(CAUSAL)
def test_absent_tensors_are_initialised(entry, tmp_path) -> None:
    model = entry.model(dtype=torch.float32, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    absent = {name for name in tensors if ".layers.1." in name or "embed" in name}
    kept = {name: tensor for name, tensor in tensors.items() if name not in absent}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == absent
    same_distribution(loaded, model)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@over(CAUSAL)
@torch.no_grad()
def test_half_precision(entry, dtype, tmp_path, tokens) -> None:
    model, ids = entry.model(dtype=torch.float32), tokens(2, 70)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    cast = entry.model(dtype=torch.float32).to(dtype)
    wide = loaded._keep_in_fp32_modules_strict or set()
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if any(part in name for part in wide) else dtype), name
    expected = model(ids).logits
    for half in (loaded, cast):
        logits = half(ids).logits
        assert logits.isfinite().all()
        assert (logits.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@over(CAUSAL)
def test_dtype_auto_is_that_of_the_file(entry, tmp_path) -> None:
    entry.model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@over(CAUSAL)
@torch.no_grad()
def test_weights_may_stay_on_disk(entry, tmp_path, tokens) -> None:
    # Weights are there only while their own module is called: no forward may read those of another.
    model, ids = entry.model(dtype=torch.float32), tokens(2, 9)
    expected = model(ids).logits
    written = model.generate(ids, max_new_tokens=4, do_sample=False)
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), written)


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_damaged_file_is_named(left, tmp_path) -> None:
    model = CAUSAL[0].model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    damaged = sorted(tmp_path.glob("*.safetensors"))[1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    with pytest.raises(OSError, match=f"{damaged.name} is damaged"):
        type(model).from_pretrained(tmp_path)


def test_absent_shard_is_named(tmp_path) -> None:
    model = CAUSAL[0].model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    absent = sorted(tmp_path.glob("*.safetensors"))[1]
    absent.unlink()
    with pytest.raises(OSError, match=absent.name):
        type(model).from_pretrained(tmp_path)


def test_other_sizes_are_refused(tmp_path) -> None:
    CAUSAL[0].model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path, hidden_size=2 * TINY["hidden_size"])


@pytest.mark.parametrize("below", [False, True])
def test_unwritable_target_is_named(below, tmp_path) -> None:
    file = tmp_path / "taken"
    file.write_text("here already")
    with pytest.raises(NotADirectoryError, match="taken"):
        CAUSAL[0].model(dtype=torch.float32).save_pretrained(file / "model" if below else file)
    assert file.read_text() == "here already"
