"""The fast form of the gated memory cell as an operator: a compiled graph keeps it whole."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name
from .gated_memory_blocks import backward, forward
from .hippo import HippoMemory

_LIBRARY = library_name(__name__)


def fast(
    x: Tensor,
    recurrent: Tensor,
    read: Tensor,
    write: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    count: Tensor | None,
    kept: Tensor | None,
    real: Tensor | None,
    memory: HippoMemory,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x (b t 2d), states h (b d) and c (b m n), all of one dtype -> y (b t d) and the states after the last token."""
    tensors = (x, recurrent, read, write, bias, h, c, count, kept, real)
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    settings = (memory.measure, memory.order, float(memory.window), method, keep)
    run = _forward_operator if torch.compiler.is_compiling() else _Cell.apply
    return run(*tensors, *settings)[:3]  # pyright: ignore


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, h, c, hidden, contents = forward(*inputs)
        ctx.save_for_backward(*inputs[:4], *inputs[5:10], hidden, contents)
        ctx.settings = inputs[10:14]
        return y, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs: Any = (*grads, *ctx.saved_tensors, *ctx.settings)
        return *backward(*inputs), *(None,) * 8


_forward_operator = torch.library.custom_op(
    f"{_LIBRARY}::gated_memory_forward",
    forward,
    mutates_args=(),
    schema="(Tensor x, Tensor recurrent, Tensor read, Tensor write, Tensor bias, Tensor h, Tensor c, Tensor? count,"
    " Tensor? kept, Tensor? real, str measure, int order, float window, str method, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    f"{_LIBRARY}::gated_memory_backward",
    backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_h, Tensor grad_c, Tensor x, Tensor recurrent, Tensor read, Tensor write,"
    " Tensor h, Tensor c, Tensor? count, Tensor? kept, Tensor? real, Tensor hidden, Tensor contents, str measure,"
    " int order, float window, str method) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_operator.register_fake
def _(x: Tensor, recurrent: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    h, c, keep = others[3], others[4], others[-1]
    (b, t, _), length = x.shape, x.shape[1] if keep else 0
    y = x.new_empty(b, t, h.shape[1])
    return y, h.new_empty(h.shape), c.new_empty(c.shape), h.new_empty(length, *h.shape), c.new_empty(length, *c.shape)


@_backward_operator.register_fake
def _(grad: Tensor, grad_h: Tensor, grad_c: Tensor, *others: Any) -> tuple[Tensor, ...]:
    x, recurrent, read, write, h, c = others[:6]
    parts = (x, recurrent, read, write, write[:, 0], h, c)
    return tuple(part.new_empty(part.shape) for part in parts)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *inputs[5:10], *output[3:])
    ctx.settings = inputs[10:14]


def _differentiate(ctx: Any, grad: Tensor, grad_h: Tensor, grad_c: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, grad_h, grad_c, *ctx.saved_tensors, *ctx.settings), *(None,) * 8


_forward_operator.register_autograd(_differentiate, setup_context=_keep)
