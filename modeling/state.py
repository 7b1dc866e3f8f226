"""What a mixer is told about the tokens it sees, and what it remembers of those it has seen. torch only.

The contract of every mixer:  `y, state = mixer(x, context, state)`,  x and y of shape (b t d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Batch-first tensors, opaque outside the mixer that made them, returned and never changed in place; None is the empty
# state. A mixer whose state grows is handed an object with `update(keys, values)` instead, and returns it.
State = Any


@dataclass
class Context:
    """One forward call, as all mixers of a model see it.

    positions (b t) or (1 t), int64: place of each token in its own sequence.
    mask (b t) bool, or None where every token is real: False at padding.
    segments (b t) int64, or None where each row is one sequence: non-decreasing numbers of the packed sequences.
        Segment 0 continues what the state remembers; any other starts from nothing.
    visibility: what softmax attention may see, in the form its attention function wants, or None.
    attention: the function that computes softmax attention, or None where no layer needs one.
    causal: whether a token sees only itself and what precedes it.
    keep_state: whether the caller wants the state after the last token.
    key_positions (b s) or (1 s) int64: place of every key that softmax attention sees, cached ones first, or None
        where no encoding asks for them.
    position: what the model's position encoding shares with the layers' (see position/base.py), or None.
    """

    positions: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    visibility: Any = None
    attention: Any = None
    causal: bool = True
    keep_state: bool = False
    key_positions: Tensor | None = None
    position: Any = None
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute()`, computed by the first layer that asks for `key` and shared with the others."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]

    def head(self, length: int) -> Context:
        """The same call cut to its first `length` tokens."""
        mask, segments = (None if part is None else part[:, :length] for part in (self.mask, self.segments))
        positions = self.positions[:, :length]
        return Context(positions, mask, segments, causal=self.causal, keep_state=self.keep_state)


def join_contexts(contexts: list[Context], batch: int, lengths: list[int]) -> Context:
    """The calls that followed one another, as one call. Segments are numbered on."""
    device = contexts[0].positions.device
    positions = torch.cat([context.positions.expand(batch, -1) for context in contexts], dim=1)
    mask = segments = None
    if any(context.mask is not None for context in contexts):
        real = [torch.ones(batch, length, dtype=torch.bool, device=device) for length in lengths]
        mask = torch.cat([one if c.mask is None else c.mask for c, one in zip(contexts, real, strict=True)], dim=1)
    if any(context.segments is not None for context in contexts):
        last = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        parts = []
        for context, length in zip(contexts, lengths, strict=True):
            parts.append(last.expand(-1, length) if context.segments is None else last + context.segments)
            last = parts[-1][:, -1:]
        segments = torch.cat(parts, dim=1)
    return Context(positions, mask, segments, causal=contexts[0].causal, keep_state=True)


def count_tokens(context: Context, before: Tensor | None, batch: int, length: int) -> Tensor:
    """How many real tokens of its own sequence each token has seen, itself included.

    before (b): the count that the state remembers, or None for zero. Returns (b t) int64.
    """
    device = context.positions.device
    if context.mask is None:
        count = torch.arange(1, length + 1, device=device).expand(batch, -1)
    else:
        count = context.mask.expand(batch, -1).long().cumsum(1)
    if context.segments is not None:
        segments = context.segments.expand(batch, -1)
        # The count just before a segment's first token, found by the first place that bears the segment's number.
        first = torch.searchsorted(segments.contiguous(), segments.contiguous())
        count = count - torch.nn.functional.pad(count, (1, 0)).gather(1, first)
        return count if before is None else count + torch.where(segments == 0, before[:, None], 0)
    return count if before is None else count + before[:, None]
