"""The fast form of ``h_t = a_t h_(t-1) + b_t``: blocks of tokens, one in-place ``addcmul_`` a step, analytic backward.

With ``G_t`` the gradient that reaches ``h_t`` by all ways, and ``*`` the complex conjugate,

    G_t = dL/dh_t + a*_(t+1) G_(t+1)        dL/da_t = G_t h*_(t-1)        dL/db_t = G_t

so that the backward pass is the same recurrence run from the end, and needs only ``a`` and the output ``h``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name

BLOCK = 256
# A row of few bytes costs more to call for than to multiply: such rows are scanned in chunks of STEPS tokens, as many
# side by side (but at most 32) as make a row of WIDE_ROW bytes.
SHORT_ROW = 2**14
WIDE_ROW = 2**16
STEPS = 16

_LIBRARY = library_name(__name__)


def fast(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``h`` and the final state; memory beyond ``h`` is that of one block, also in the backward pass.

    Args:
        a: ``(batch, t, *channels)``, where any size may be 1 instead.
        b: ``(batch, t, *channels)``, ``state``: ``(batch, *channels)``; one real or complex dtype for all three.
    """
    if torch.compiler.is_compiling():
        return _forward_operator(a, b, state)
    return _Scan.apply(a, b, state)


def scan(coefficient: Tensor, source: Tensor, out: Tensor, carry: Tensor, reverse: bool = False) -> Tensor:
    """Write ``out_t = source_t + coefficient_t * out_(t-1)`` (``out_(t+1)`` if ``reverse``), block by block.

    Args:
        coefficient: ``(batch, t, *channels)``, where every size but that of time may be 1.
        source: ``(batch, t, *channels)``.
        out: a buffer of the shape of ``source``, overwritten.
        carry: ``(batch, *channels)``, the row before the first (after the last) token.

    Returns:
        The last row computed; it may be a view of ``out``.
    """
    length = out.shape[1]
    coefficient = coefficient.expand(-1, length, *coefficient.shape[2:])
    row_bytes = max(1, carry.numel() * carry.element_size())
    nested = row_bytes < SHORT_ROW and length >= 2 * STEPS
    size = STEPS * min(32, WIDE_ROW // row_bytes) if nested else BLOCK
    starts = range(0, length, size)
    for start in reversed(starts) if reverse else starts:
        block = slice(start, start + size)
        rows = out[:, block].copy_(source[:, block])
        run = _nested_steps if nested else _plain_steps
        carry = run(coefficient[:, block].resolve_conj(), rows, carry, reverse)
    return carry


def _plain_steps(coefficient: Tensor, rows: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    steps = zip(coefficient.unbind(1), rows.unbind(1), strict=True)
    for factor, row in reversed(list(steps)) if reverse else steps:
        carry = row.addcmul_(factor, carry)
    return carry


def _nested_steps(coefficient: Tensor, rows: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    """Chunks of ``STEPS`` tokens side by side, then their carries, then each chunk's share of what came before it."""
    count = rows.shape[1] // STEPS
    whole, rest = slice(0, count * STEPS), slice(count * STEPS, None)
    if reverse:
        carry = _plain_steps(coefficient[:, rest], rows[:, rest], carry, reverse)
    if count:
        carry = _chunks(coefficient[:, whole], rows[:, whole], carry, reverse)
    if not reverse:
        carry = _plain_steps(coefficient[:, rest], rows[:, rest], carry, reverse)
    return carry


def _chunks(coefficient: Tensor, rows: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    order = -1 if reverse else 1
    inside = rows.unflatten(1, (-1, STEPS))
    factor = coefficient.unflatten(1, (-1, STEPS))
    steps, factors = inside.unbind(2)[::order], factor.unbind(2)[::order]
    row = steps[0]
    for i in range(1, STEPS):
        row = steps[i].addcmul_(factors[i], row)
    product, total = _products(factor, factors, coefficient.stride(1) == 0, order)
    before = torch.empty(row.shape, dtype=total.dtype, device=row.device)
    total, carry, row = total.expand(-1, row.shape[1], *row.shape[2:]), carry.to(total.dtype), row.to(total.dtype)
    for end, whole, place in zip(*(x.unbind(1)[::order] for x in (row, total, before)), strict=True):
        place.copy_(carry)
        carry = torch.addcmul(end, whole, carry)
    inside.addcmul_(product, before.to(rows.dtype).unsqueeze(2))
    return carry.to(rows.dtype)


def _products(factor: Tensor, factors: tuple[Tensor, ...], constant: bool, order: int) -> tuple[Tensor, Tensor]:
    """The products of the decays from where each chunk begins to each of its tokens, and over the whole chunk.

    Where the decay is constant the powers are few, and a rounded one would err in the same way chunk after chunk: they
    are taken in double precision, and the whole is handed on so.
    """
    if constant:
        wide = torch.complex128 if factor.is_complex() else torch.float64
        power = factor[:, :1].to(wide).cumprod(2)
        return (power.flip(2) if order < 0 else power).to(factor.dtype), power[:, :, -1]
    product = torch.empty(factor.shape, dtype=factor.dtype, device=factor.device)
    products = product.unbind(2)[::order]
    total = products[0].copy_(factors[0])
    for i in range(1, STEPS):
        total = torch.mul(total, factors[i], out=products[i])
    return product, total


def _forward(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    return h, scan(a, b, h, state).clone()


def _backward(
    grad: Tensor, grad_final: Tensor, a: Tensor, h: Tensor, state: Tensor, with_a: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``a`` (empty unless asked for), ``b`` and the initial state."""
    total = torch.empty_like(h)
    last = torch.add(grad[:, -1], grad_final, out=total[:, -1])
    after = a.conj().resolve_conj() if a.shape[1] == 1 else a[:, 1:].conj()
    scan(after, grad[:, :-1], total[:, :-1], last, reverse=True)
    grad_a = _decay_gradient(total, a, h, state) if with_a else a.new_empty(0)
    return grad_a, total, total[:, 0] * a[:, 0].conj()


def _decay_gradient(total: Tensor, a: Tensor, h: Tensor, state: Tensor) -> Tensor:
    """The sum of ``G_t h*_(t-1)`` over whatever ``a`` is constant in, block by block."""
    grad = torch.empty_like(a, memory_format=torch.contiguous_format)
    at_first = (total[:, :1] * state.unsqueeze(1).conj()).sum_to_size(a[:, :1].shape)
    grad[:, :1] = at_first
    for start in range(1, h.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        share = total[:, block] * h[:, start - 1 : start + BLOCK - 1][:, : total[:, block].shape[1]].conj()
        if a.shape[1] == 1:
            grad += share.sum_to_size(a.shape)
        else:
            grad[:, block] = share.sum_to_size(a[:, block].shape)
    return grad


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, final = _forward(a, b, state)
        ctx.save_for_backward(a, h, state)
        return h, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_final: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        with_a = ctx.needs_input_grad[0]
        a, h, state = ctx.saved_tensors
        grad_a, grad_b, grad_state = _backward(grad, grad_final, a, h, state, with_a)
        return grad_a if with_a else None, grad_b, grad_state


_forward_operator = torch.library.custom_op(
    f"{_LIBRARY}::diagonal_forward",
    _forward,
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor state) -> (Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    f"{_LIBRARY}::diagonal_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_final, Tensor a, Tensor h, Tensor state, bool with_a)"
    " -> (Tensor, Tensor, Tensor)",
)


@_forward_operator.register_fake
def _(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b, memory_format=torch.contiguous_format), state.new_empty(state.shape)


@_backward_operator.register_fake
def _(
    grad: Tensor, grad_final: Tensor, a: Tensor, h: Tensor, state: Tensor, with_a: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape if with_a else 0), torch.empty_like(h), state.new_empty(state.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0], inputs[2])


def _differentiate(ctx: Any, grad: Tensor, grad_final: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    with_a = ctx.needs_input_grad[0]
    a, h, state = ctx.saved_tensors
    grad_a, grad_b, grad_state = _backward_operator(grad, grad_final, a, h, state, with_a)
    return grad_a if with_a else None, grad_b, grad_state


_forward_operator.register_autograd(_differentiate, setup_context=_keep)
