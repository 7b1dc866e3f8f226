r"""The matrix-state recurrence as a loop over cache-sized blocks, with its own backward: the form for processors.

Memory beyond the outputs is a few blocks; for the backward every eighth state at a block's start is kept, and the
seven between are computed again. Under torch.compile the loop is one custom operator. Its name is made from this
module's, so that copies under other names (remote code beside an installed package) register operators of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name
from .matrix_blocks import CHUNK, Reader, Writer, block_count, block_size, empty_like_mixers, row_groups
from .matrix_channel_cell import ChannelCell
from .matrix_constant_cell import ConstantCell, foldable
from .matrix_scalar_cell import ScalarCell

KEPT = 8


def fast(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence block by block; q, k, v and decay of lower precision than the state are cast blockwise.

    The gradient is analytic and cannot be differentiated again; the other forms can.
    """
    given = [x for x in (q, k, v, decay, state) if x is not None]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if torch.compiler.is_compiling():
        return _forward_op(q, k, v, decay, state, keep)[:2]
    if keep:
        return _Fast.apply(q, k, v, decay, state)
    return _forward(q, k, v, decay, state, False)[:2]


def _working_dtype(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (q.dtype, k.dtype, v.dtype) else torch.float32


def _state_shape(q: Tensor, v: Tensor) -> tuple[int, ...]:
    return q.shape[0], q.shape[1], q.shape[3], v.shape[3]


def _outputs(q: Tensor, k: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty y, final state and the states that the backward starts from (all but the first)."""
    final = q.new_empty(_state_shape(q, v), dtype=_working_dtype(q, k, v))
    kept = (block_count(q.shape[2]) - 1) // KEPT if keep else 0
    return empty_like_mixers(v), final, final.new_empty(kept, *final.shape)


def _cell(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, rows: slice, size: int = CHUNK
) -> ScalarCell | ChannelCell:
    dtype = _working_dtype(q, k, v)
    parts = q[rows], k[rows], v[rows]
    if decay is None:
        return ScalarCell(*parts, None, dtype, size)
    if decay.dim() == 1:
        if foldable(decay, dtype):
            return ConstantCell(*parts, decay, dtype, size)
        decay = decay[:, None].expand(q.shape[:3])
    return (ChannelCell if decay.dim() == 4 else ScalarCell)(*parts, decay[rows], dtype, size)


def _copy_of(state: Tensor | None, like: Tensor) -> Tensor:
    """Return a state (rows h dk dv), or zeros of that shape, as a fresh (rows*h dk dv)."""
    return torch.zeros_like(like).flatten(0, 1) if state is None else state.flatten(0, 1).clone()


@torch.no_grad()
def _forward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, final, kept = _outputs(q, k, v, keep)
    size = block_size(q.shape[0], q.shape[1], keep, decay)
    for rows in row_groups(*q.shape[:2]):
        cell = _cell(q, k, v, decay, rows, size)
        current = _copy_of(None if state is None else state[rows], final[rows])
        write_y = Writer(y[rows], size)
        for number in range(block_count(q.shape[2], size)):
            if keep and number and number % KEPT == 0:
                kept[number // KEPT - 1, rows].flatten(0, 1).copy_(current)
            cell.load(number)
            write_y(number, cell.output(current if number or state is not None else None))
            cell.advance(current, out=current)
        final[rows].flatten(0, 1).copy_(current)
    return y, final, kept


class _Gradients:
    """The gradients of one call, filled block by block from the end."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, final: Tensor) -> None:
        self.q, self.k, self.v = empty_like_mixers(q), empty_like_mixers(k), empty_like_mixers(v)
        self.state = torch.empty_like(final)
        self.decay = None if decay is None else torch.zeros_like(decay)
        self.writers: list[Callable[[int, Tensor], None]] = []

    def choose(self, rows: slice) -> None:
        """Turn to some rows of the batch."""
        self.writers = [Writer(x[rows]) for x in (self.q, self.k, self.v)]
        decay = self.decay
        if decay is not None:
            self.writers.append(partial(_add_to_constant, decay) if decay.dim() == 1 else Writer(decay[rows]))

    def write(self, number: int, blocks: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
        """Store what a cell returned for one block; a gradient of the decay that is not asked for is None."""
        for writer, block in zip(self.writers, blocks, strict=False):
            if block is not None:
                writer(number, block)


def _add_to_constant(target: Tensor, _: int, block: Tensor) -> None:
    """Add a block (rows*h m) of the decay's gradient to that of the heads' constants (h)."""
    target.add_(block.view(-1, len(target), block.shape[1]).sum((0, 2)))


@torch.no_grad()
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    kept: Tensor,
    with_decay: bool,
) -> _Gradients:
    q, k, v, decay, state = inputs
    gradients = _Gradients(q, k, v, decay if with_decay else None, kept.new_empty(_state_shape(q, v)))
    count = block_count(q.shape[2])
    for rows in row_groups(*q.shape[:2]):
        cell, read_dy = _cell(q, k, v, decay, rows), Reader(dy[rows], kept.dtype)
        gradients.choose(rows)
        ahead = _copy_of(None if dfinal is None else dfinal[rows], gradients.state[rows])
        states = ahead.new_empty(KEPT, *ahead.shape).unbind()
        for first in reversed(range(0, count, KEPT)):
            before = kept[first // KEPT - 1] if first else state
            states[0].copy_(_copy_of(None if before is None else before[rows], gradients.state[rows]))
            last = min(first + KEPT, count)
            for number in range(first, last - 1):
                cell.load(number)
                cell.advance(states[number - first], out=states[number - first + 1])
            for number in reversed(range(first, last)):
                cell.load(number)
                blocks = cell.gradients(states[number - first], ahead, read_dy(number), with_decay)
                gradients.write(number, blocks)
        gradients.state[rows].flatten(0, 1).copy_(ahead)
    return gradients


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, final, kept = _forward(*inputs, keep=True)
        ctx.save_for_backward(*inputs, kept)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, kept = ctx.saved_tensors
        needed = ctx.needs_input_grad
        dy = torch.zeros_like(inputs[2]) if dy is None else dy
        g = _backward(dy, dfinal, tuple(inputs), kept, needed[3])
        return tuple(x if need else None for x, need in zip((g.q, g.k, g.v, g.decay, g.state), needed, strict=True))


_NAMESPACE = library_name(__name__)
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state"

_forward_op = torch.library.custom_op(
    f"{_NAMESPACE}::matrix_recurrence",
    _forward,
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, keep: bool) -> tuple[Tensor, ...]:
    return _outputs(q, k, v, keep)


def _all_gradients(
    dy: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    kept: Tensor,
    with_decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = _backward(dy, dfinal, (q, k, v, decay, state), kept, with_decay)
    return g.q, g.k, g.v, kept.new_empty(0) if g.decay is None else g.decay, g.state


_backward_op = torch.library.custom_op(
    f"{_NAMESPACE}::matrix_recurrence_backward",
    _all_gradients,
    mutates_args=(),
    schema=f"(Tensor dy, Tensor dfinal, {_INPUTS}, Tensor kept, bool with_decay)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward_op.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    kept: Tensor,
    with_decay: bool,
) -> tuple[Tensor, ...]:
    g = _Gradients(q, k, v, decay if with_decay else None, kept.new_empty(_state_shape(q, v)))
    return g.q, g.k, g.v, kept.new_empty(0) if g.decay is None else g.decay, g.state


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])


def _differentiate(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, kept = ctx.saved_tensors
    needed = ctx.needs_input_grad[:5]
    found = _backward_op(dy, dfinal, *inputs, kept, needed[3])
    return (*(x if need else None for x, need in zip(found, needed, strict=True)), None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
