"""Codes that are made one from the other: p_0, p_(k+1) = f(p_k, k). What "recursive" and "floater" have in common.

How many there must be is known from the largest position, which a traced graph cannot see: there one operator makes
and picks the rows, and makes them once more for its gradient. It cannot be part of an ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.dispatch import library_name
from ..state import Context
from .base import PositionEncoding
from .learned import real_positions

Step = Callable[[Sequence[Tensor], Tensor, int], Tensor]

# A flat copy of this code may live in the same process: each has operators of its own.
_LIBRARY = library_name(__name__)


def chain(step: Step, weights: Sequence[Tensor], length: int, known: Tensor | None = None) -> Tensor:
    """Rows p_0 .. p_(length-1), (length d), going on from the `known` ones; p_0 is weights[0]."""
    first = weights[0][None] if known is None else known
    rows = [first[-1]]
    for k in range(len(first) - 1, length - 1):
        rows.append(step(weights, rows[-1], k))
    return torch.cat((first, torch.stack(rows[1:]))) if len(rows) > 1 else first[:length]


def rows_for(positions: Tensor) -> int:
    """How many rows serve `positions`: 1 more than the largest. Raises ValueError for a negative one."""
    if not positions.numel():
        return 1
    low, high = (int(one) for one in positions.aminmax())
    if low < 0:
        raise ValueError(f"positions count from 0: there is no position {low}.")
    return high + 1


def make_operator(name: str, step: Step) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """The operator `name`: (positions, weights) -> the rows at positions, with gradients for weights."""

    def pick(positions: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return chain(step, weights, rows_for(positions))[positions]

    def pull(grad: Tensor, positions: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        back = torch.func.vjp(lambda *tensors: pick(positions, tensors), *weights)[1]
        return [one.clone() for one in back(grad)]

    codes = torch.library.custom_op(
        f"{_LIBRARY}::{name}", pick, mutates_args=(), schema="(Tensor positions, Tensor[] weights) -> Tensor"
    )
    gradients = torch.library.custom_op(
        f"{_LIBRARY}::{name}_backward",
        pull,
        mutates_args=(),
        schema="(Tensor grad, Tensor positions, Tensor[] weights) -> Tensor[]",
    )
    codes.register_fake(lambda positions, weights: weights[0].new_empty(*positions.shape, weights[0].shape[0]))
    gradients.register_fake(lambda grad, positions, weights: [torch.empty_like(one) for one in weights])

    def keep(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[1])

    def differentiate(ctx: Any, grad: Tensor) -> tuple[None, list[Tensor]]:
        positions, *weights = ctx.saved_tensors
        return None, gradients(grad, positions, weights)

    codes.register_autograd(differentiate, setup_context=keep)
    return codes


class Chain(PositionEncoding):
    """A code p_k (b t d) for each position, added to the embeddings.

    step, operator: f, and what `make_operator` makes of it.
    dynamics: called without arguments, it gives p_0 (d) and the parameters of f. They are an own module and used
        through its call, because offloading brings parameters back when a module is called.
    Without gradient the rows are kept while the weights are equal to those they were made of, so that a decoding
    step makes one row and not all.
    """

    step: Step
    operator: Callable[[Tensor, list[Tensor]], Tensor]

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.kept: tuple[list[Tensor], Tensor] | None = None

    def codes(self, context: Context) -> Tensor:
        """p_k (b t d) or (1 t d) for the positions k of the context, in float32 or wider. ValueError for k < 0."""
        positions = real_positions(context)
        # Copies: sums of a product depend in their last bit on where the memory of a loaded file begins.
        weights = [one.to(torch.promote_types(one.dtype, torch.float32), copy=True) for one in self.dynamics()]
        with torch.autocast(positions.device.type, enabled=False):
            if torch.compiler.is_compiling():
                return self.operator(positions, weights)
            if torch.is_grad_enabled():
                return chain(self.step, weights, rows_for(positions))[positions]
            return self.kept_rows(weights, rows_for(positions))[positions]

    def kept_rows(self, weights: list[Tensor], length: int) -> Tensor:
        """At least `length` rows, as many of them as are known taken from the last call."""
        known = None
        if self.kept is not None and all(map(identical, self.kept[0], weights)):
            known = self.kept[1]
        if known is None or len(known) < length:
            rows = chain(self.step, weights, length, known)
            self.kept = (weights, rows)
            return rows
        return known

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        return x + self.codes(context).to(x.dtype)


def identical(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
