"""Positions that mark no packing: those of a 4-D mask, and those that generate() gives to tokens after padding."""

import pytest
import torch
from architectures import CAUSAL
from laws import over, ragged, same

GROWING = [entry for entry in CAUSAL if "full_attention" in entry.config().layer_types]


@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
@over(GROWING)
def test_continuations_share_a_prefix_under_a_mask(entry, additive, tokens) -> None:
    model, prefix, ends = entry.model(), tokens(1, 4), tokens(3, 1, seed=1)
    expected = model(torch.cat((prefix.expand(3, -1), ends), dim=1)).logits[:, -1]
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    visible[4:, 4:] = torch.eye(3, dtype=torch.bool)  # the three ends do not see one another
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min).double() if additive else visible
    positions = torch.tensor([[0, 1, 2, 3, 4, 4, 4]])
    ids = torch.cat((prefix, ends.T), dim=1)
    found = model(ids, attention_mask=mask[None, None], position_ids=positions, use_cache=False).logits
    same(found[0, 4:], expected)


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "cached"])
@over(CAUSAL)
def test_generate_goes_on_after_right_padding(entry, use_cache, tokens) -> None:
    model = entry.model()
    ids, mask = ragged([tokens(1, 7)[0], tokens(1, 3)[0]], "right")
    written = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=use_cache)
    assert written.shape == (2, 11)
