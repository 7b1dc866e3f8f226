"""The factors of a block of WKV's fast form, in binary units (2^x, which torch vectorises on every processor).

All sums of a block share one scale where its keys lie within 2^RANGE of one another: then one exponential per key is
all there is to compute. Else every token has the scale of the largest exponent so far, and nothing can overflow or
vanish, whatever the keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = 1.4426950408889634
# Products of two such factors, and sums of 2^10 of them, stay far inside float32's 2^-126 .. 2^127.
RANGE = 50.0
# The exponent of an empty sum, in these units.
LOWEST = -1e30 * LOG2_E


class Factors(NamedTuple):
    """What `wkv_blocks.py` multiplies with; None stands for 1.

    enter, leave: (b d), from the scale of the state to the block's, and from that to the state's after the block.
    fade: (d) or (b t d), what becomes of the sums from one token to the next; own: (b t d), what a token adds to them.
    past, new: (b t d), the shares of the sums and of the token itself in its output.
    top: (b d), the largest exponent after the block.
    """

    enter: Tensor | None
    leave: Tensor | None
    fade: Tensor
    own: Tensor
    past: Tensor | None
    new: Tensor
    top: Tensor


def block_factors(
    k: Tensor, rate: Tensor, bonus: Tensor, top: Tensor, mask: Tensor | None, kept: Tensor | None
) -> Factors:
    """The factors of tokens with keys k (b t d). rate, bonus (d), top (b d); mask, kept (b t) or None."""
    mask, kept = (None if x is None else x[..., None] for x in (mask, kept))
    if mask is None:
        highest = torch.maximum(k.amax(1), top)
    else:
        highest = torch.maximum(k.where(mask, LOWEST).amax(1), top)
        k = torch.where(mask, k, highest[:, None])  # padding must not widen the range
    if bool((highest - k.amin(1)).max() <= RANGE) and bool(bonus.abs().max() <= RANGE / 2):
        return _shared_scale(k, rate, bonus, top, highest, mask, kept)
    return _own_scales(k, rate, bonus, top, mask, kept)


def _shared_scale(
    k: Tensor,
    rate: Tensor,
    bonus: Tensor,
    top: Tensor,
    highest: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
) -> Factors:
    own = torch.exp2(k - highest[:, None])
    new = own * torch.exp2(bonus)
    own = own if mask is None else own * mask
    fade, past = torch.exp2(rate), None if kept is None else kept.to(k.dtype).expand_as(k)
    if mask is not None:
        fade = torch.where(mask, fade, 1)
    if past is not None:
        fade = fade * past
    last = _last_top(k, rate, top, mask, kept)
    # Where nothing has been seen the sums are zero in any scale.
    leave = torch.exp2((highest - last).clamp(max=2 * RANGE))
    return Factors(torch.exp2(top - highest), leave, fade, own, past, new, last)


def _last_top(k: Tensor, rate: Tensor, top: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
    """The largest exponent after the last token, of those in its segment."""
    levels = torch.cat([top[:, None], k if mask is None else k.masked_fill(~mask, LOWEST)], 1)
    count, sequence = _counts(k, mask, kept)
    levels = torch.addcmul(levels, count[:, -1:] - count, rate)
    return (levels if sequence is None else levels.masked_fill(sequence != sequence[:, -1:], LOWEST)).amax(1)


def _counts(k: Tensor, mask: Tensor | None, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """How many real tokens (b 1+t 1) precede the first token and each next one, and in which segment it stands."""
    if mask is None:
        count = torch.arange(k.shape[1] + 1, dtype=k.dtype, device=k.device)[None, :, None]
    else:
        count = F.pad(mask.to(k.dtype).cumsum(1), (0, 0, 1, 0))
    return count, None if kept is None else F.pad((~kept).long().cumsum(1), (0, 0, 1, 0))


def _own_scales(
    k: Tensor, rate: Tensor, bonus: Tensor, top: Tensor, mask: Tensor | None, kept: Tensor | None
) -> Factors:
    levels = torch.cat([top[:, None], k if mask is None else k.masked_fill(~mask, LOWEST)], 1)
    count, sequence = _counts(k, mask, kept)
    reach = 1
    while reach < levels.shape[1]:  # a running maximum by doubling
        farther = torch.addcmul(levels[:, :-reach], count[:, reach:] - count[:, :-reach], rate)
        if sequence is not None:
            farther.masked_fill_(sequence[:, reach:] != sequence[:, :-reach], LOWEST)
        levels = torch.cat([levels[:, :reach], torch.maximum(levels[:, reach:], farther)], 1)
        reach *= 2
    before, after = levels[:, :-1], levels[:, 1:]
    fade = before - after + (rate if mask is None else rate * mask)
    own = torch.exp2(k - after if mask is None else (k - after).masked_fill(~mask, -torch.inf))
    reached = before if kept is None else before.masked_fill(~kept, LOWEST)
    high = torch.maximum(reached, bonus + k)
    past, new = reached - high, torch.exp2(bonus + k - high)
    if kept is not None:
        fade, past = (x.masked_fill(~kept, -torch.inf) for x in (fade, past))
    return Factors(None, None, torch.exp2(fade), own, torch.exp2(past), new, after[:, -1].clone())
