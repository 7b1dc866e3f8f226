"""The fast form of the selective scan: blocks of tokens in two cache-sized buffers, analytic backward.

Inside a block everything lies as ``(b, t, n, d)``, so that the long dimension is the innermost; a step is one
``addcmul_``, the read-out ``C_t h_t`` one batched product. Of the forward pass only the states at which the blocks
begin are kept. The backward pass goes through the blocks from the last to the first, computes their states again,
and with ``G_t = C_t dL/dy_t + a_(t+1) G_(t+1)``, ``a_t = exp(delta_t A)``, collects

    dL/d(delta_t A) = G_t h_(t-1) a_t        dL/d(delta_t u_t) = B_t G_t        dL/dB_t = G_t delta_t u_t

The blocks run in inference mode, where autograd's part of every call is left out: a twentieth of the time or more.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name

# exp2 is vectorised by torch itself on every processor, exp is left to libraries and can be four times slower.
LOG2_E = 1.4426950408889634
BUFFER_NUMBERS = 2**19

_LIBRARY = library_name(__name__)


def fast(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ``y (b t d)`` and the final state ``(b d n)``.

    Args:
        u, delta, B, C: as :func:`noria.modeling.ops.selective_scan.selective_scan` takes them, in any real dtype.
        A: ``(d n)`` and ``state``: ``(b d n)``, both in the dtype of the sums.
        kept: ``(b t)`` booleans, False where a segment starts, or None.
    """
    inputs = (u, delta, A, B, C, state)
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if torch.compiler.is_compiling():
        return _forward_operator(*inputs, kept, differentiate)[:2]
    return _SelectiveScan.apply(*inputs, kept, differentiate)


def block_length(b: int, n: int, d: int) -> int:
    """The number of tokens whose states fill a buffer; between 8 and 128."""
    return max(8, min(128, BUFFER_NUMBERS // max(1, b * n * d)))


class _Block(NamedTuple):
    """What forward and backward both need of one block of tokens, in the dtype of the sums."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor  # (b t n d), a view of a buffer
    states: Tensor  # (b t n d), a view of a buffer


def _run_block(
    tokens: slice,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    rate: Tensor,
    start: Tensor,
    decay: Tensor,
    states: Tensor,
) -> _Block:
    """Fill the two buffers with the decays and the states of a block. ``rate`` is A^T log2(e), ``(n d)``."""
    u, delta, B, C, kept = tensors
    u, delta, B, C = (x[:, tokens].to(rate.dtype) for x in (u, delta, B, C))
    decay, states = decay[:, : u.shape[1]], states[:, : u.shape[1]]
    torch.mul(delta.unsqueeze(2), rate, out=decay).exp2_()
    if kept is not None:
        decay.mul_(kept[:, tokens, None, None])
    torch.mul((delta * u).unsqueeze(2), B.unsqueeze(3), out=states)
    for factor, row in zip(decay.unbind(1), states.unbind(1), strict=True):
        start = row.addcmul_(factor, start)
    return _Block(u, delta, B, C, decay, states)


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, the final state and, if asked for, the states ``(blocks b n d)`` at which the blocks begin."""
    (b, t, d), n = u.shape, A.shape[1]
    size = block_length(b, n, d)
    rate = A.t().contiguous().mul_(LOG2_E)
    starts = A.new_empty(_count(t, size) if keep_starts else 0, b, n, d)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    current = state.transpose(1, 2).contiguous()
    with torch.autocast(u.device.type, enabled=False), torch.inference_mode():
        decay, states = A.new_empty(2, b, min(size, t), n, d).unbind(0)
        for index in range(_count(t, size)):
            if keep_starts:
                starts[index] = current
            tokens = slice(index * size, (index + 1) * size)
            block = _run_block(tokens, (u, delta, B, C, kept), rate, current, decay, states)
            y[:, tokens] = torch.matmul(block.C.unsqueeze(2), block.states).squeeze(2)
            current = block.states[:, -1].clone()
    return y, _ordinary(current), starts


def _ordinary(state: Tensor) -> Tensor:
    """(b n d) -> (b d n), as a tensor that autograd may keep."""
    return state.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _count(t: int, size: int) -> int:
    return (t + size - 1) // size


def _backward(
    grad: Tensor,
    grad_final: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, A, B, C and the initial state."""
    size = block_length(u.shape[0], A.shape[1], u.shape[2])
    transposed = A.t().contiguous()
    rate = transposed * LOG2_E
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C))
    grad_a = torch.zeros_like(transposed)
    carry = grad_final.transpose(1, 2).contiguous()
    with torch.autocast(u.device.type, enabled=False), torch.inference_mode():
        buffers = A.new_empty(3, u.shape[0], min(size, u.shape[1]), *rate.shape).unbind(0)
        for index in reversed(range(starts.shape[0])):
            tokens = slice(index * size, (index + 1) * size)
            block = _run_block(tokens, (u, delta, B, C, kept), rate, starts[index], *buffers[:2])
            above = grad[:, tokens].to(A.dtype)
            total, carry = _run_back(block, above, carry, buffers[2])
            shares = _block_gradients(block, above, total, starts[index], transposed, grad_a)
            for whole, share in zip(grads, shares, strict=True):
                whole[:, tokens] = share
    grad_u, grad_delta, grad_b, grad_c = grads
    return grad_u, grad_delta, grad_a.t().contiguous(), grad_b, grad_c, _ordinary(carry)


def _run_back(block: _Block, above: Tensor, carry: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """``G_t`` of a block in ``buffer``, and what the block before it receives. ``carry`` is what this one receives."""
    total = buffer[:, : above.shape[1]]
    torch.mul(above.unsqueeze(2), block.C.unsqueeze(3), out=total)
    rows, factors = total.unbind(1), block.decay.unbind(1)
    row = rows[-1].add_(carry)
    for i in range(len(rows) - 2, -1, -1):
        row = rows[i].addcmul_(factors[i + 1], row)
    return total, factors[0] * row


def _block_gradients(
    block: _Block, above: Tensor, total: Tensor, start: Tensor, transposed: Tensor, grad_a: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A block's gradients of u, delta, B and C; that of A^T is added to ``grad_a``. The buffers are consumed.

    The sums over d are row times transposed matrix: the same product written as matrix times column is 8 times slower.
    """
    u, delta, B, _, decay, states = block
    grad_c = torch.matmul(above.unsqueeze(2), states.transpose(2, 3)).squeeze(2)
    grad_b = torch.matmul((delta * u).unsqueeze(2), total.transpose(2, 3)).squeeze(2)
    into = torch.matmul(B.unsqueeze(2), total).squeeze(2)
    exponent = total.mul_(decay)
    exponent[:, 1:].mul_(states[:, :-1])
    exponent[:, 0].mul_(start)
    grad_delta = torch.mul(exponent, transposed, out=decay).sum(2).addcmul_(into, u)
    grad_a += torch.mul(exponent, delta.unsqueeze(2), out=decay).flatten(0, 1).sum(0)
    return into * delta, grad_delta, grad_b, grad_c


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, final, starts = _forward(*inputs)
        u, delta, A, B, C, _, kept, _ = inputs
        ctx.save_for_backward(u, delta, A, B, C, kept, starts)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(grad, grad_final, *ctx.saved_tensors), None, None


_forward_operator = torch.library.custom_op(
    f"{_LIBRARY}::selective_forward",
    _forward,
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor state, Tensor? kept, bool keep_starts)"
    " -> (Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    f"{_LIBRARY}::selective_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_final, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? kept,"
    " Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_operator.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (b, t, d), n = u.shape, A.shape[1]
    count = _count(t, block_length(b, n, d)) if keep_starts else 0
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        A.new_empty(b, d, n),
        A.new_empty(count, b, n, d),
    )


@_backward_operator.register_fake
def _(
    grad: Tensor,
    grad_final: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_u, grad_delta, grad_a, grad_b, grad_c = (x.new_empty(x.shape) for x in (u, delta, A, B, C))
    return grad_u, grad_delta, grad_a, grad_b, grad_c, A.new_empty(grad_final.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, _, kept, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, kept, output[2])


def _differentiate(ctx: Any, grad: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, grad_final, *ctx.saved_tensors), None, None


_forward_operator.register_autograd(_differentiate, setup_context=_keep)
