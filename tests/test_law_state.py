"""Law 8: the state is an object. Saved, loaded elsewhere, forked, reordered, offloaded: the same continuation."""

import copy
import subprocess
import sys

import pytest
import torch
from architectures import CAUSAL
from laws import over, same

from noria import NoriaCache

CONTINUE = """
import sys, torch, noria
from transformers import AutoModelForCausalLM
folder, cache, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
cache = noria.NoriaCache.load(cache, model.config)
torch.save(model(torch.load(ids), past_key_values=cache, use_cache=True).logits, out)
"""


def prefix(model, ids) -> NoriaCache:
    with torch.no_grad():
        return model(ids, use_cache=True).past_key_values


@over(CAUSAL)
def test_saved_and_loaded_it_continues(entry, tokens, tmp_path):
    model, ids = entry.model(), tokens(2, 12)
    cache = prefix(model, ids[:, :9])
    cache.save(tmp_path / "cache.safetensors")
    expected = model(ids).logits[:, 9:]
    loaded = NoriaCache.load(tmp_path / "cache.safetensors", model.config)
    assert loaded.get_seq_length() == 9
    same(model(ids[:, 9:], past_key_values=loaded, use_cache=True).logits, expected)
    same(model(ids[:, 9:], past_key_values=cache, use_cache=True).logits, expected)


@over([entry for entry in CAUSAL if "-" not in entry.name])
def test_loaded_in_another_process_it_continues(entry, tokens, tmp_path):
    model, ids = entry.model(), tokens(2, 12)
    model.save_pretrained(tmp_path / "model")
    prefix(model, ids[:, :9]).save(tmp_path / "cache.safetensors")
    torch.save(ids[:, 9:], tmp_path / "ids.pt")
    paths = [str(tmp_path / name) for name in ("model", "cache.safetensors", "ids.pt", "out.pt")]
    subprocess.run([sys.executable, "-c", CONTINUE, *paths], check=True, cwd=tmp_path)
    same(torch.load(tmp_path / "out.pt"), model(ids).logits[:, 9:])


@over(CAUSAL)
def test_a_row_with_padding_continues_at_its_own_position(entry, tokens, tmp_path):
    model, ids = entry.model(), tokens(1, 12)
    padded = torch.cat([torch.full((1, 3), 5), ids[:, :9]], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    cache = model(padded, attention_mask=mask, use_cache=True).past_key_values
    cache.save(tmp_path / "cache.safetensors")
    loaded = NoriaCache.load(tmp_path / "cache.safetensors", model.config)
    assert loaded.positions.tolist() == [9]
    grown = torch.cat([mask, torch.ones(1, 3, dtype=torch.int64)], dim=1)
    follow = model(ids[:, 9:], attention_mask=grown, past_key_values=loaded, use_cache=True).logits
    same(follow, model(ids).logits[:, 9:])


@over(CAUSAL)
@pytest.mark.parametrize("twin", [NoriaCache.fork, copy.deepcopy])
def test_forks_do_not_touch_one_another(entry, twin, tokens):
    model, ids = entry.model(), tokens(1, 8)
    cache = model(ids, use_cache=True).past_key_values  # with its graph: deepcopy must not mind
    answers = [tokens(1, 4, seed) for seed in (3, 4)]
    for answer in answers:
        follow = model(answer, past_key_values=twin(cache), use_cache=True).logits
        same(follow, model(torch.cat([ids, answer], dim=1)).logits[:, 8:])
    assert cache.get_seq_length() == 8


@over(CAUSAL)
def test_rows_are_reordered_repeated_selected(entry, tokens):
    model, ids, more = entry.model(), tokens(3, 7), tokens(3, 2, 4)
    for change, order in [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 2])), [2, 0, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ]:
        cache = prefix(model, ids)
        change(cache)
        follow = model(more[order], past_key_values=cache, use_cache=True).logits
        same(follow, model(torch.cat([ids, more], dim=1)[order]).logits[:, 7:])


@over(CAUSAL)
def test_offloaded_and_fetched_back(entry, tokens):
    model, ids = entry.model(), tokens(2, 9)
    cache = prefix(model, ids[:, :6])
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    same(model(ids[:, 6:], past_key_values=cache, use_cache=True).logits, model(ids).logits[:, 6:])


@over(CAUSAL)
def test_reset_is_new(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    cache = prefix(model, tokens(2, 9, 7))
    cache.reset()
    same(model(ids, past_key_values=cache, use_cache=True).logits, model(ids).logits)


@over(CAUSAL, "constant state")
def test_its_size_does_not_depend_on_the_prompt(entry, tokens, tmp_path):
    model = entry.model()
    sizes = set()
    for length in (1, 16, 300):
        cache = prefix(model, tokens(1, length))
        cache.save(tmp_path / "cache.safetensors")
        sizes.add((cache.nbytes, sum(part.numel() for layer in cache.layers for part in layer.state)))
    assert len(sizes) == 1


@over(CAUSAL)
def test_states_are_wide_and_loaded_keys_take_a_dtype(entry, tokens, tmp_path):
    model, ids = entry.model(dtype=torch.bfloat16), tokens(1, 6)
    cache = prefix(model, ids)
    cache.save(tmp_path / "cache.safetensors")
    loaded = NoriaCache.load(tmp_path / "cache.safetensors", model.config, device="cpu", dtype=torch.float32)
    for layer in loaded.layers:
        parts = getattr(layer, "state", None) or (layer.keys, layer.values)
        assert all(part.dtype in (torch.float32, torch.int64) for part in parts)


@over(CAUSAL)
def test_files_that_do_not_fit_are_refused(entry, tokens, tmp_path):
    model, path = entry.model(), tmp_path / "cache.safetensors"
    with pytest.raises(ValueError, match="empty"):
        NoriaCache(model.config).save(path)
    assert not list(tmp_path.iterdir())
    prefix(model, tokens(1, 5)).save(path)
    with pytest.raises(ValueError, match="belongs to another model: its config"):
        NoriaCache.load(path, entry.config(hidden_size=32))
    with pytest.raises(OSError, match="cannot write the cache to"):
        prefix(model, tokens(1, 5)).save(tmp_path / "absent" / "cache.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        NoriaCache.load(path, model.config)
    with pytest.raises(FileNotFoundError, match="absent"):
        NoriaCache.load(tmp_path / "absent", model.config)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not a cache that noria saved"):
        NoriaCache.load(tmp_path / "model" / "model.safetensors", model.config)
