r"""The delta rule as a loop over cache-sized blocks, with its own backward: the form for processors.

For the backward u and the state before every 256th token are kept; the states between are put together again from u,
without solving. Under torch.compile the loop is one custom operator, named as in ``matrix_fast``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .delta_cell import DeltaCell, block_size
from .dispatch import library_name
from .matrix_blocks import Reader, Writer, block_count, empty_like_mixers, row_groups

KEPT = 256


def fast(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, state: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the delta rule block by block; what is of lower precision than the state is cast blockwise.

    The gradient is analytic and cannot be differentiated again; the other forms can.
    """
    given = (q, k, v, a, b, decay, state)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if torch.compiler.is_compiling():
        return _forward_op(*given, segments, keep)[:2]
    if keep:
        return _Fast.apply(*given, segments)
    return _forward(*given, segments, False)[:2]


def _outputs(v: Tensor, state: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty y, final state, the states before each KEPT-th token but the first, and u."""
    b, h, t, dv = v.shape
    kept = state.new_empty((t + KEPT - 1) // KEPT - 1 if keep else 0, *state.shape)
    return empty_like_mixers(v), torch.empty_like(state), kept, state.new_empty(b, h, t if keep else 0, dv)


def _cell(
    inputs: tuple[Tensor, ...], segments: Tensor | None, rows: slice, dtype: torch.dtype, size: int
) -> DeltaCell:
    parts = tuple(x[rows] for x in inputs)
    return DeltaCell(parts, None if segments is None else segments[rows].expand(len(parts[0]), -1), dtype, size)


@torch.no_grad()
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor,
    state: Tensor,
    segments: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, final, kept, values = _outputs(v, state, keep)
    size = block_size(decay, state.dtype)
    for rows in row_groups(*q.shape[:2]):
        cell = _cell((q, k, v, a, b, decay), segments, rows, state.dtype, size)
        current = state[rows].flatten(0, 1).clone()
        write_y, write_u = Writer(y[rows], size), Writer(values[rows], size)
        for number in range(block_count(q.shape[2], size)):
            if keep and number and number * size % KEPT == 0:
                kept[number * size // KEPT - 1, rows].flatten(0, 1).copy_(current)
            cell.load(number)
            block, u = cell.output(current)
            write_y(number, block)
            if keep:
                write_u(number, u)
            cell.advance(current, u, out=current)
        final[rows].flatten(0, 1).copy_(current)
    return y, final, kept, values


@torch.no_grad()
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    inputs: tuple[Tensor, ...],
    state: Tensor,
    segments: Tensor | None,
    kept: Tensor,
    values: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, a, b, decay and the state, filled block by block from the end."""
    found = tuple(empty_like_mixers(x) for x in inputs)
    dstate = torch.empty_like(state)
    size = block_size(inputs[5], state.dtype)
    count, span = block_count(inputs[0].shape[2], size), KEPT // size
    for rows in row_groups(*inputs[0].shape[:2]):
        cell = _cell(inputs, segments, rows, state.dtype, size)
        read_dy, read_u = Reader(dy[rows], state.dtype, size), Reader(values[rows], state.dtype, size)
        writers = [Writer(x[rows], size) for x in found]
        ahead = dstate[rows].flatten(0, 1)
        ahead = torch.zeros_like(ahead) if dfinal is None else dfinal[rows].flatten(0, 1).clone()
        states = ahead.new_empty(min(span, count), *ahead.shape).unbind()
        for first in reversed(range(0, count, span)):
            before = kept[first // span - 1] if first else state
            states[0].copy_(before[rows].flatten(0, 1))
            last = min(first + span, count)
            for number in range(first, last - 1):
                cell.load(number)
                cell.advance(states[number - first], read_u(number), out=states[number - first + 1])
            for number in reversed(range(first, last)):
                cell.load(number)
                blocks = cell.gradients(states[number - first], ahead, read_dy(number), read_u(number))
                for write, block in zip(writers, blocks, strict=True):
                    write(number, block)
        dstate[rows].flatten(0, 1).copy_(ahead)
    return (*found, dstate)


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, final, kept, values = _forward(*inputs, keep=True)
        ctx.save_for_backward(*inputs, kept, values)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, state, segments, kept, values = ctx.saved_tensors
        dy = torch.zeros_like(inputs[2]) if dy is None else dy
        found = _backward(dy, dfinal, tuple(inputs), state, segments, kept, values)
        return (*(x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False)), None)


_NAMESPACE = library_name(__name__)
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, Tensor decay, Tensor state, Tensor? segments"

_forward_op = torch.library.custom_op(
    f"{_NAMESPACE}::delta_rule",
    _forward,
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    return _outputs(inputs[2], inputs[6], inputs[8])


def _all_gradients(
    dy: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor,
    state: Tensor,
    segments: Tensor | None,
    kept: Tensor,
    values: Tensor,
) -> tuple[Tensor, ...]:
    return _backward(dy, dfinal, (q, k, v, a, b, decay), state, segments, kept, values)


_backward_op = torch.library.custom_op(
    f"{_NAMESPACE}::delta_rule_backward",
    _all_gradients,
    mutates_args=(),
    schema=f"(Tensor dy, Tensor dfinal, {_INPUTS}, Tensor kept, Tensor values)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward_op.register_fake
def _(dy: Tensor, dfinal: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return (*(empty_like_mixers(x) for x in inputs[:6]), torch.empty_like(inputs[6]))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output[2:])


def _differentiate(ctx: Any, dy: Tensor, dfinal: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    found = _backward_op(dy, dfinal, *ctx.saved_tensors)
    return (*(x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False)), None, None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
