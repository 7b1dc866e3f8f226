"""Where each token stands: its position, whether it is real, and which packed sequence it belongs to. torch only.

Boundaries between packed sequences are found in `position_ids` that restart at 0, or given as `cu_seq_lens_q` or
`seq_idx`, as transformers' collators make them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """positions (b t) or (1 t) int64; mask (b t) bool or None; segments (b t) int64 or None, as Context has them."""

    positions: Tensor
    mask: Tensor | None
    segments: Tensor | None


def find_layout(
    batch: int,
    length: int,
    device: torch.device,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past: int | Tensor = 0,
    next_positions: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    packs: bool = True,
    mask: Tensor | None = None,
) -> Layout:
    """The layout of `length` new tokens in each of `batch` rows, after `past` tokens.

    attention_mask (b past+t), 1 at real tokens; position_ids (b t) or (1 t); next_positions (b): the first position
    where nothing else tells; cu_seq_lens (n+1) for one row; seq_idx (b t); packs: whether positions that restart begin
    another sequence; mask (b t): that of the new tokens, for a caller who has no other. Raises ValueError for shapes
    that do not fit and, where positions tell the packing, for positions that run backwards without restarting at 0.
    """
    if attention_mask is not None:
        mask = trailing_mask(attention_mask, batch, length, past)
    segments = given_segments(batch, length, device, cu_seq_lens, seq_idx)
    if position_ids is not None:
        positions = check_positions(position_ids, batch, length)
        if segments is None and packs:
            segments = restarts(positions, mask, attention_mask, past)
    elif segments is not None:
        positions = torch.arange(length, device=device) - torch.searchsorted(segments, segments)
    elif attention_mask is not None:
        positions = count_positions(attention_mask)[:, -length:]
    elif next_positions is not None:
        positions = next_positions[:, None] + torch.arange(length, device=device)
    else:
        positions = (torch.arange(length, device=device) + past)[None]
    return Layout(positions, mask, None if segments is None else segments.expand(batch, -1))


def count_positions(attention_mask: Tensor) -> Tensor:
    """Places (b s) of tokens: real ones are counted, and padding counts on from the real token before it."""
    real = attention_mask.bool()
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    slots = torch.arange(real.shape[1], device=real.device)
    since = slots - torch.where(real, slots, -1).cummax(dim=1).values
    return places + torch.where(real | (since > slots), 0, since)


def find_key_positions(
    layout: Layout,
    attention_mask: Tensor | None,
    past: int | Tensor,
    keys: int,
    batch: int,
    visibility: Tensor | None = None,
) -> Tensor:
    """The place (b s) or (1 s) of each of `keys` keys: `past` cached ones, then the layout's tokens, then room.

    Places of cached keys follow from `attention_mask` (b past+t) where it is given, else from what the last token sees
    by `visibility` (b 1 t s), else they count back from the first new token. What stands in the room of a static cache
    is seen by no query.
    """
    new, length = layout.positions, layout.positions.shape[1]
    if keys == length:
        return new
    slots = torch.arange(keys, device=new.device)[None]
    if attention_mask is None and visibility is not None:
        last = visibility[:, 0, -1]
        seen = last if last.dtype == torch.bool else last >= 0
        places = count_positions(seen)
        ahead = new[:, -1:] - torch.where(seen, places, -1).amax(dim=1, keepdim=True)
        places = places + ahead.clamp(min=0)
    elif attention_mask is None:
        places = slots - past + new[:, :1]
    else:
        places = F.pad(count_positions(attention_mask), (0, keys - attention_mask.shape[1]))
        mask = attention_mask[:, attention_mask.shape[1] - length :].bool()
        ahead = new - places[:, attention_mask.shape[1] - length : attention_mask.shape[1]]
        places = places + torch.where(mask, ahead, torch.iinfo(torch.int64).min).amax(dim=1, keepdim=True).clamp(min=0)
    into = (past + torch.arange(length, device=new.device))[None].expand(batch, -1)
    return places.expand(batch, -1).scatter(1, into, new.expand(batch, -1))


def trailing_mask(attention_mask: Tensor, batch: int, length: int, past: int | Tensor) -> Tensor | None:
    """The mask of the new tokens, or None where all are real (known only outside tracing)."""
    shape = tuple(attention_mask.shape)
    fits = shape[0] == batch and (isinstance(past, Tensor) or shape[1] == past + length)
    if len(shape) != 2 or not fits:
        raise ValueError(
            f"`attention_mask` has shape {shape}; for {length} new tokens after {past} it must be "
            f"({batch}, {past + length}), past tokens included."
        )
    mask = attention_mask[:, shape[1] - length :].bool()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def check_positions(position_ids: Tensor, batch: int, length: int) -> Tensor:
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
        raise ValueError(
            f"`position_ids` has shape {tuple(position_ids.shape)}; it must be ({batch}, {length}) or (1, {length})."
        )
    return position_ids.long()


def given_segments(
    batch: int, length: int, device: torch.device, cu_seq_lens: Tensor | None, seq_idx: Tensor | None
) -> Tensor | None:
    """Segments (b t) from the boundaries that the caller states, or None."""
    if seq_idx is not None:
        if tuple(seq_idx.shape) != (batch, length):
            raise ValueError(f"`seq_idx` has shape {tuple(seq_idx.shape)}; it must be ({batch}, {length}).")
        return F.pad((seq_idx.diff(dim=1) != 0).long(), (1, 0)).cumsum(1)
    if cu_seq_lens is None:
        return None
    if batch != 1:
        raise ValueError(f"`cu_seq_lens_q` describes one flattened row, but the batch has {batch}.")
    if not torch.compiler.is_compiling() and (int(cu_seq_lens[0]) != 0 or int(cu_seq_lens[-1]) != length):
        raise ValueError(f"`cu_seq_lens_q` must run from 0 to {length}, the row's length, not {cu_seq_lens.tolist()}.")
    ends = cu_seq_lens[1:].to(device=device, dtype=torch.int64).contiguous()
    return torch.searchsorted(ends, torch.arange(length, device=device), right=True)[None]


def previous_real(mask: Tensor) -> Tensor:
    """For each place of mask (b t) the index of the last real token before it, or -1."""
    place = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1)
    return F.pad(place.cummax(dim=1).values[:, :-1], (1, 0), value=-1)


def restarts(
    positions: Tensor, mask: Tensor | None, attention_mask: Tensor | None, past: int | Tensor
) -> Tensor | None:
    """Segments from positions that restart at 0; None where none does."""
    compiling = torch.compiler.is_compiling()
    if compiling and (mask is not None or positions.shape[1] == 1 or isinstance(past, Tensor) or past):
        return None
    real = torch.ones_like(positions, dtype=torch.bool) if mask is None else mask
    positions = positions.expand_as(real)
    before = previous_real(real)
    seen = past_real(attention_mask, positions, past)
    begins = real & (positions == 0) & ((before >= 0) | seen)
    if not compiling:
        reject_backward(positions, real)
        if not bool(begins.any()):
            return None
    return begins.long().cumsum(1)


def past_real(attention_mask: Tensor | None, positions: Tensor, past: int | Tensor) -> Tensor:
    """(b 1) bool: whether the row has real tokens before these."""
    if attention_mask is None:
        return torch.full_like(positions[:, :1], bool(past), dtype=torch.bool)
    return attention_mask[:, : attention_mask.shape[1] - positions.shape[1]].bool().any(dim=1, keepdim=True)


def reject_backward(positions: Tensor, real: Tensor) -> None:
    # Across padding anything goes: generate() counts on from the position that it gave to the last pad.
    wrong = (positions[:, 1:] != 0) & (positions[:, 1:] <= positions[:, :-1]) & real[:, 1:] & real[:, :-1]
    if bool(wrong.any()):
        row, place = (int(index) for index in wrong.nonzero()[0])
        earlier, later = positions[row, place : place + 2].tolist()
        raise ValueError(
            f"`position_ids` go from {earlier} to {later} at token {place + 1} of row {row}: they must increase, or "
            "restart at 0 where another packed sequence begins."
        )


def targets_in_layout(labels: Tensor, layout: Layout) -> Tensor:
    """Labels (b t) moved to the token that predicts each: the real token before it in the same sequence.

    A label without one, as at the first token of a sequence, counts for nothing (-100).
    """
    real = torch.ones_like(labels, dtype=torch.bool) if layout.mask is None else layout.mask
    before = previous_real(real)
    keep = real & (before >= 0)
    if layout.segments is not None:
        keep &= layout.segments == layout.segments.gather(1, before.clamp(min=0))
    targets = labels.new_full((labels.shape[0], labels.shape[1] + 1), -100)
    # What has no predictor goes to a column past the end, which is cut off.
    return targets.scatter(1, torch.where(keep, before, labels.shape[1]), labels)[:, :-1].contiguous()


def real_tokens(
    x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None
) -> Tensor | None:
    """Which tokens of x (b t d) are real, (b t) bool: by a 2-D mask, else by the id of padding, else None."""
    if attention_mask is not None and attention_mask.dim() == 2:
        return attention_mask[:, -x.shape[1] :].bool()
    return None if input_ids is None or pad_token_id is None else input_ids != pad_token_id


def first_or_last_real(x: Tensor, real: Tensor | None, last: bool) -> Tensor:
    """x (b t d) at the first (or last) place (b d) where real (b t) holds; the row's first where none does.

    real None: every token is real.
    """
    if real is None:
        return x[:, -1 if last else 0]
    place = torch.arange(x.shape[1], device=x.device)
    chosen = torch.where(real, place, 0).amax(dim=1) if last else real.long().argmax(dim=1)
    return x[torch.arange(x.shape[0], device=x.device), chosen]
