"""The fast form of WKV: blocks of tokens in a cache-sized buffer, analytic backward.

Inside a block the sums X_t = (num, den) obey X_t = f_t X_(t-1) + o_t (v_t, 1), and y = n / m of

    n_t = p_t X_(t-1)[num] + q_t v_t        m_t = p_t X_(t-1)[den] + q_t

where the factors f, o, p, q come from `wkv_factors.py`, which sees to it that none overflows. Of the forward pass only
the sums at which the blocks begin are kept; the backward pass computes the others again, from the last block to the
first. With a_t = (dL/dy_t) / m_t and G_t = dL/dX_t = p_(t+1) (a, -a y)_(t+1) + f_(t+1) G_(t+1) it collects

    dL/dv_t = o_t G_t[num] + q_t a_t        dL/dk_t = o_t (G_t[num] v_t + G_t[den]) + q_t a_t (v_t - y_t)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import library_name
from .wkv_factors import LOG2_E, Factors, block_factors

BUFFER_NUMBERS = 2**17

_LIBRARY = library_name(__name__)


def fast(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    kept: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return ``y (b t d)`` and the final sums, each ``(b d)``.

    Args:
        k, v: ``(b t d)`` in any real dtype.
        rate, bonus: ``(d)``, and ``state``: three of ``(b d)``, all in the dtype of the sums; rate is negative.
        mask: ``(b t)`` booleans, False at padding, or None.
        kept: ``(b t)`` booleans, False where a segment starts, or None.
    """
    sums = torch.stack(state[:2], 1)
    inputs = (k, v, rate, bonus, sums, state[2])
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if torch.compiler.is_compiling():
        y, sums, top, _ = _forward_operator(*inputs, mask, kept, differentiate)
    else:
        y, sums, top = _WKV.apply(*inputs, mask, kept, differentiate)
    return y, (sums[:, 0].clone(), sums[:, 1].clone(), top)


def block_length(b: int, d: int) -> int:
    """The number of tokens whose sums fill a buffer of 1 MiB; between 16 and 64."""
    return max(16, min(64, BUFFER_NUMBERS // max(1, b * d)))


class _Block(NamedTuple):
    """What forward and backward both need of one block, in the dtype of the sums."""

    factors: Factors
    v: Tensor
    sums: Tensor  # (b 1+t 2 d), a view of a buffer: before the first token and after each
    y: Tensor
    weight: Tensor  # (b t d): m


def _run_block(
    tokens: slice,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    rate: Tensor,
    bonus: Tensor,
    start: tuple[Tensor, Tensor],
    buffer: Tensor,
) -> _Block:
    """The sums and outputs of a block. ``rate`` and ``bonus`` are in binary units, as is the top in ``start``."""
    k, v, mask, kept = tensors
    mask, kept = (None if x is None else x[:, tokens] for x in (mask, kept))
    k, v = (x[:, tokens].to(rate.dtype) for x in (k, v))
    factors = block_factors(k * LOG2_E, rate, bonus, start[1], mask, kept)
    sums = buffer[:, : v.shape[1] + 1]
    torch.mul(start[0], 1 if factors.enter is None else factors.enter[:, None], out=sums[:, 0])
    torch.mul(factors.own, v, out=sums[:, 1:, 0])
    sums[:, 1:, 1].copy_(factors.own)
    row, *rest = sums.unbind(1)
    for fade, following in zip(_steps(factors.fade, len(rest)), rest, strict=True):
        row = following.addcmul_(fade, row)
    above, weight = factors.new * v, factors.new.clone()
    if factors.past is None:
        above += sums[:, :-1, 0]
        weight += sums[:, :-1, 1]
    else:
        above.addcmul_(factors.past, sums[:, :-1, 0])
        weight.addcmul_(factors.past, sums[:, :-1, 1])
    return _Block(factors, v, sums, above.div_(weight), weight)


def _steps(fade: Tensor, count: int) -> list[Tensor]:
    """The factors between the rows of a block, for sums (b 2 d)."""
    return [fade] * count if fade.dim() == 1 else list(fade.unsqueeze(2).unbind(1))


def _leave(block: _Block, x: Tensor) -> Tensor:
    """x (b 2 d) between the scale inside a block and the one in which its last sums are kept."""
    return x.clone() if block.factors.leave is None else x * block.factors.leave[:, None]


def _forward(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    sums: Tensor,
    top: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
    keep_starts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y``, the final sums ``(b 2 d)`` and top ``(b d)`` and, if asked for, all three ``(blocks b 3 d)`` at the
    beginnings of the blocks."""
    b, t, d = k.shape
    size = block_length(b, d)
    rate, bonus, top = rate * LOG2_E, bonus * LOG2_E, top * LOG2_E
    starts = rate.new_empty(_count(t, size) if keep_starts else 0, b, 3, d)
    buffer = rate.new_empty(b, min(size, t) + 1, 2, d)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    for index in range(_count(t, size)):
        if keep_starts:
            starts[index, :, :2], starts[index, :, 2] = sums, top
        tokens = slice(index * size, (index + 1) * size)
        block = _run_block(tokens, (k, v, mask, kept), rate, bonus, (sums, top), buffer)
        y[:, tokens] = block.y
        sums, top = _leave(block, block.sums[:, -1]), block.factors.top
    return y, sums, top / LOG2_E, starts


def _count(t: int, size: int) -> int:
    return (t + size - 1) // size


def _backward(
    grad: Tensor,
    grad_sums: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, rate, bonus and the initial sums."""
    b, t, d = k.shape
    size = block_length(b, d)
    buffers = rate.new_empty(2, b, min(size, t) + 1, 2, d).unbind(0)
    grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    totals = torch.zeros_like(rate), torch.zeros_like(bonus)
    units = rate * LOG2_E, bonus * LOG2_E
    for index in reversed(range(starts.shape[0])):
        tokens = slice(index * size, (index + 1) * size)
        start = starts[index, :, :2], starts[index, :, 2]
        block = _run_block(tokens, (k, v, mask, kept), *units, start, buffers[0])
        real = None if mask is None else mask[:, tokens, None]
        share_k, share_v, grad_sums = _block_gradients(
            block, grad[:, tokens].to(rate.dtype), _leave(block, grad_sums), real, buffers[1], totals
        )
        grad_k[:, tokens], grad_v[:, tokens] = share_k, share_v
    return grad_k, grad_v, *totals, grad_sums


def _block_gradients(
    block: _Block, grad: Tensor, carry: Tensor, real: Tensor | None, buffer: Tensor, totals: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's gradients of k, v and of the sums before it; those of rate and bonus are added to ``totals``."""
    factors, v, sums, y, weight = block
    rows = buffer[:, : v.shape[1] + 1]
    above = grad / weight
    torch.mul(above, 1 if factors.past is None else factors.past, out=rows[:, :-1, 0])
    torch.mul(rows[:, :-1, 0], y, out=rows[:, :-1, 1]).neg_()
    rows[:, -1] = carry
    following, *rest = reversed(rows.unbind(1))
    for fade, row in zip(reversed(_steps(factors.fade, len(rest))), rest, strict=True):
        following = row.addcmul_(fade, following)
    newest = above * factors.new
    share_v = torch.addcmul(newest, factors.own, rows[:, 1:, 0])
    newest *= v - y
    totals[1].add_(newest.flatten(0, 1).sum(0))
    share_k = torch.addcmul(rows[:, 1:, 1], rows[:, 1:, 0], v).mul_(factors.own).add_(newest)
    product = (rows[:, 1:] * sums[:, :-1]).sum(2).mul_(factors.fade)
    totals[0].add_((product if real is None else product * real).flatten(0, 1).sum(0))
    return share_k, share_v, rows[:, 0] * (1 if factors.enter is None else factors.enter[:, None])


class _WKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, sums, top, starts = _forward(*inputs)
        k, v, rate, bonus, _, _, mask, kept, _ = inputs
        ctx.save_for_backward(k, v, rate, bonus, mask, kept, starts)
        ctx.mark_non_differentiable(top)
        return y, sums, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(grad, grad_sums, *ctx.saved_tensors), None, None, None, None


_forward_operator = torch.library.custom_op(
    f"{_LIBRARY}::wkv_forward",
    _forward,
    mutates_args=(),
    schema="(Tensor k, Tensor v, Tensor rate, Tensor bonus, Tensor sums, Tensor top, Tensor? mask, Tensor? kept,"
    " bool keep_starts) -> (Tensor, Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    f"{_LIBRARY}::wkv_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_sums, Tensor k, Tensor v, Tensor rate, Tensor bonus, Tensor? mask, Tensor? kept,"
    " Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_operator.register_fake
def _(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    sums: Tensor,
    top: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
    keep_starts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, t, d = k.shape
    count = _count(t, block_length(b, d)) if keep_starts else 0
    return (
        torch.empty_like(v, memory_format=torch.contiguous_format),
        rate.new_empty(b, 2, d),
        rate.new_empty(b, d),
        rate.new_empty(count, b, 3, d),
    )


@_backward_operator.register_fake
def _(
    grad: Tensor,
    grad_sums: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_k, grad_v, grad_rate, grad_bonus = (x.new_empty(x.shape) for x in (k, v, rate, bonus))
    return grad_k, grad_v, grad_rate, grad_bonus, rate.new_empty(grad_sums.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    k, v, rate, bonus, _, _, mask, kept, _ = inputs
    ctx.save_for_backward(k, v, rate, bonus, mask, kept, output[3])


def _differentiate(ctx: Any, grad: Tensor, grad_sums: Tensor, _: Tensor, __: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, grad_sums, *ctx.saved_tensors), None, None, None, None


_forward_operator.register_autograd(_differentiate, setup_context=_keep)
