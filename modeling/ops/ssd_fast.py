"""Mamba-2's recurrence as a loop over cache-sized blocks, with its own backward: the form for processors.

Memory beyond the outputs is a few blocks; for the backward every eighth state at a block's start is kept, and the
seven between are computed again. Under torch.compile the loop is one custom operator. Its name is made from this
module's, so that copies under other names (remote code beside an installed package) register operators of their own.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name
from .matrix_blocks import CHUNK, Scratch, block_count
from .ssd_cell import SSDCell

KEPT = 8


def fast(x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence block by block: y (b t h p) and the final state (b h n p).

    The gradient is analytic and cannot be differentiated again; the other forms can.
    """
    inputs = (x, delta, decay, B, C, state)
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in inputs)
    if torch.compiler.is_compiling():
        return _forward_op(*inputs, keep)[:2]
    if keep:
        return _Fast.apply(*inputs)
    return _forward(*inputs, False)[:2]


def _sums_dtype(*parts: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (part.dtype for part in parts) else torch.float32


def _outputs(
    x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty y (b t h p), final state (b h n p) and the states (kept b g n r p) that the backward starts from."""
    (b, t, h, p), (g, n) = x.shape, B.shape[2:]
    dtype = _sums_dtype(x, delta, decay, B, C)
    kept = (block_count(t) - 1) // KEPT if keep else 0
    return (
        x.new_empty(b, t, h, p),
        x.new_empty(b, h, n, p, dtype=dtype),
        x.new_empty(kept, b, g, n, h // g, p, dtype=dtype),
    )


def _into_groups(state: Tensor | None, like: Tensor) -> Tensor:
    """A state (h n p), or zeros, as a fresh (g n r p) of the shape of `like`."""
    if state is None:
        return torch.zeros_like(like)
    grouped = state.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return torch.empty_like(like).copy_(grouped)


def _into_heads(state: Tensor, out: Tensor) -> None:
    """Write a state (g n r p) to `out` (h n p)."""
    out.unflatten(0, (state.shape[0], state.shape[2])).copy_(state.transpose(1, 2))


@torch.no_grad()
def _forward(
    x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, final, kept = _outputs(x, delta, decay, B, C, keep)
    scratch = Scratch(final.dtype, x.device)
    for row in range(x.shape[0]):
        cell = SSDCell(x[row], delta[row], decay[row], B[row], C[row], scratch)
        current = _into_groups(None if state is None else state[row], final.new_empty(kept.shape[2:]))
        for number, target in enumerate(y[row].split(CHUNK)):
            if keep and number and number % KEPT == 0:
                kept[number // KEPT - 1, row].copy_(current)
            cell.load(number)
            cell.output(current if number or state is not None else None, out=target)
            cell.advance(current)
        _into_heads(current, final[row])
    return y, final, kept


class _Gradients(NamedTuple):
    """The gradients of one call, filled block by block from the end."""

    x: Tensor
    delta: Tensor
    decay: Tensor
    B: Tensor
    C: Tensor
    state: Tensor


def _empty_gradients(x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, kept: Tensor) -> _Gradients:
    empty = (part.new_empty(part.shape) for part in (x, delta, decay, B, C))
    return _Gradients(*empty, state=kept.new_empty(x.shape[0], x.shape[2], B.shape[3], x.shape[3]))


@torch.no_grad()
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    kept: Tensor,
) -> _Gradients:
    gradients = _empty_gradients(x, delta, decay, B, C, kept)
    scratch = Scratch(kept.dtype, x.device)
    states = kept.new_empty(KEPT, *kept.shape[2:])
    for row in range(x.shape[0]):
        cell = SSDCell(x[row], delta[row], decay[row], B[row], C[row], scratch)
        ahead = _into_groups(None if dfinal is None else dfinal[row], states[0])
        targets = [part[row].split(CHUNK) for part in gradients[:5]]
        blocks = dy[row].split(CHUNK)
        for first in reversed(range(0, len(blocks), KEPT)):
            if first:
                states[0].copy_(kept[first // KEPT - 1, row])
            else:
                states[0].copy_(_into_groups(None if state is None else state[row], states[0]))
            last = min(first + KEPT, len(blocks))
            for number in range(first, last - 1):
                cell.load(number)
                cell.advance(states[number - first + 1].copy_(states[number - first]))
            for number in reversed(range(first, last)):
                cell.load(number)
                _store(cell.gradients(states[number - first], ahead, blocks[number]), targets, number)
        _into_heads(ahead, gradients.state[row])
    return gradients


def _store(found: tuple[Tensor, ...], targets: list[tuple[Tensor, ...]], number: int) -> None:
    """Copy the gradients of a block to their places, those of B and C from (g m n) to (m g n)."""
    dx, ddelta, ddecay, dB, dC = found
    parts = (dx.flatten(1, 2), ddelta, ddecay, dB.transpose(0, 1), dC.transpose(0, 1))
    for blocks, part in zip(targets, parts, strict=True):
        blocks[number].copy_(part)


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
        x, *others = ctx.saved_tensors
        found = _backward(torch.zeros_like(x) if dy is None else dy, dfinal, x, *others)
        return tuple(part if need else None for part, need in zip(found, ctx.needs_input_grad, strict=True))


_NAMESPACE = library_name(__name__)
_INPUTS = "Tensor x, Tensor delta, Tensor decay, Tensor B, Tensor C, Tensor? state"

_forward_op = torch.library.custom_op(
    f"{_NAMESPACE}::ssd",
    _forward,
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _(
    x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, ...]:
    return _outputs(x, delta, decay, B, C, keep)


def _all_gradients(dy: Tensor, dfinal: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(_backward(dy, dfinal, *inputs))


_backward_op = torch.library.custom_op(
    f"{_NAMESPACE}::ssd_backward",
    _all_gradients,
    mutates_args=(),
    schema=f"(Tensor dy, Tensor dfinal, {_INPUTS}, Tensor kept) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward_op.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(_empty_gradients(x, delta, decay, B, C, kept))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[2])


def _differentiate(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = _backward_op(dy, dfinal, *ctx.saved_tensors)
    return (*(part if need else None for part, need in zip(found, ctx.needs_input_grad[:6], strict=True)), None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
