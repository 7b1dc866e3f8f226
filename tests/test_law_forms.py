"""Laws 1, 2, 3, 15: the form of computation, the cut of the sequence and its shape change nothing."""

import pytest
import torch
from architectures import CAUSAL
from laws import cuts, gradients, over, same, same_gradients

from noria import NoriaCache
from noria.modeling.ops.dispatch import FORMS, forced_form


@over(CAUSAL)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "sequential"])
@pytest.mark.parametrize("length", [3, 65])
def test_forms_agree(entry, form, length, tokens):
    model, ids = entry.model(), tokens(2, length)
    found = {}
    for name in ("sequential", form):
        with forced_form(name):
            out = model(ids, labels=ids)
            found[name] = out.logits.detach(), gradients(model, out.loss)
    same(found[form][0], found["sequential"][0])
    same_gradients(found[form][1], found["sequential"][1])


@over(CAUSAL)
def test_forms_agree_in_float32(entry, tokens):
    model, ids = entry.model(), tokens(1, 150)
    with forced_form("sequential"), torch.no_grad():
        expected = model(ids).logits
    same(model.float()(ids).logits.double(), expected, 2e-4)  # two layers of large weights amplify rounding


@over(CAUSAL)
def test_no_token_changes_what_precedes_it(entry, tokens):
    model, ids = entry.model(), tokens(1, 20)
    before = model(ids).logits
    for place in (0, 7, 19):
        changed = ids.clone()
        changed[0, place] = changed[0, place] % 60 + 1
        after = model(changed).logits
        same(after[:, :place], before[:, :place]) if place else None
        assert (after[:, place:] - before[:, place:]).abs().max() > 1e-3


@over(CAUSAL)
@pytest.mark.parametrize("seed", range(6))
def test_any_cut_gives_the_same(entry, seed, tokens):
    model, ids = entry.model(), tokens(2, 33)
    whole = model(ids, use_cache=True)
    cache, parts, start = NoriaCache(model.config), [], 0
    for piece in cuts(33, seed):
        parts.append(model(ids[:, start : start + piece], past_key_values=cache, use_cache=True).logits)
        start += piece
    same(torch.cat(parts, dim=1), whole.logits)
    same_state(cache, whole.past_key_values)


@over(CAUSAL)
def test_a_cut_with_padding_gives_the_same(entry, tokens):
    model, ids = entry.model(), tokens(3, 21)
    mask = torch.ones(3, 21, dtype=torch.int64)
    mask[0, :5], mask[1, 4], mask[2, 17:] = 0, 0, 0
    whole = model(ids, attention_mask=mask, use_cache=True)
    cache, start = NoriaCache(model.config), 0
    for piece in (3, 1, 1, 4, 8, 1, 1, 2):
        end = start + piece
        part = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True).logits
        real = mask[:, start:end].bool()
        if real.any():
            same(part[real], whole.logits[:, start:end][real])
        start = end
    same_state(cache, whole.past_key_values)


def same_state(found: NoriaCache, expected: NoriaCache) -> None:
    assert found.get_seq_length() == expected.get_seq_length()
    for mine, other in zip(found.layers, expected.layers, strict=True):
        for part, whole in zip(mine.state or (), other.state or (), strict=True) if hasattr(mine, "state") else ():
            same(part.double(), whole.double())


@over(CAUSAL)
@pytest.mark.parametrize("width", [8, 13, 31, 50, 96, 199])
def test_any_width(entry, width, tokens):
    """Every size that is not given is derived, so that a working model results."""
    fields = {"hidden_size": width, "num_attention_heads": None, "num_hidden_layers": 1}
    model = entry.model(**fields)
    for length in (1, 2, 7):
        ids = tokens(2, length)
        cached = model.generate(ids, max_new_tokens=3, do_sample=False)
        assert torch.equal(cached, model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False))


@over(CAUSAL)
def test_inputs_may_be_views(entry, tokens):
    model = entry.model()
    ids = tokens(4, 22)[::2, ::2]
    same(model(ids).logits, model(ids.contiguous()).logits)
    embeds = model.get_input_embeddings()(ids).transpose(0, 1).contiguous().transpose(0, 1)
    same(model(inputs_embeds=embeds).logits, model(ids).logits)
