"""Weighted sums of shifted copies of a sequence: the arithmetic of a short depthwise convolution.

    y_t = b + sum_j m_tj w_j * x_(t+j)

The fast form goes through blocks of tokens that stay in the cache, one `addcmul_` for each j, and so does its backward

    dL/dx_s = sum_j m_(s-j)j w_j * dL/dy_(s-j)      dL/dw_j = sum_t m_tj x_(t+j) * dL/dy_t

Compilers get the plain form, which they fuse into one loop.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64


def shifted_sums(x: Tensor, weight: Tensor, bias: Tensor | None, near: Tensor | None, form: str) -> Tensor:
    """x (b t+k-1 d), weight (d k), bias (d) or None, near (b t k) booleans or None -> y (b t d) in the dtype of x.

    `near` is False where a shifted token counts as zero. Sums are float32, or float64 where x is.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(wide)
    bias = None if bias is None else bias.to(wide)
    if form == "fast" and not torch.compiler.is_compiling():
        return _ShiftedSums.apply(x, weight, bias, near)
    if form == "step" and near is None:
        y = torch.einsum("bkd,dk->bd", x.to(wide), weight)[:, None]
        return (y if bias is None else y + bias).to(x.dtype)
    length = x.shape[1] - weight.shape[1] + 1
    y = weight.new_zeros(()) if bias is None else bias
    for j, tap in enumerate(weight.unbind(1)):
        share = x[:, j : j + length].to(wide) * tap
        y = y + (share if near is None else torch.where(near[..., j, None], share, 0))
    return y.to(x.dtype)


def _taps(weight: Tensor, near: Tensor | None, tokens: slice) -> list[Tensor]:
    """The weights (d), or (b t d) where some count as zero, of each shift in a block."""
    taps = list(weight.t().contiguous().unbind(0))
    if near is None:
        return taps
    return [tap * near[:, tokens, j, None] for j, tap in enumerate(taps)]


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


class _ShiftedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, near: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, near)
        ctx.biased = bias is not None
        b, length, k = x.shape[0], x.shape[1] - weight.shape[1] + 1, weight.shape[1]
        y = x.new_empty(b, length, x.shape[2])
        for tokens in _blocks(length):
            part = x[:, tokens.start : tokens.stop + k - 1].to(weight.dtype)
            size = tokens.stop - tokens.start
            taps = _taps(weight, near, tokens)
            total = torch.mul(part[:, :size], taps[0])
            if bias is not None:
                total += bias
            for j in range(1, k):
                total.addcmul_(part[:, j : j + size], taps[j])
            y[:, tokens] = total
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, near = ctx.saved_tensors
        k, length = weight.shape[1], grad.shape[1]
        grad_x = torch.zeros_like(x, dtype=weight.dtype, memory_format=torch.contiguous_format)
        grad_weight = torch.zeros_like(weight.t(), memory_format=torch.contiguous_format)
        grad_bias = weight.new_zeros(weight.shape[0]) if ctx.biased else None
        for tokens in _blocks(length):
            size = tokens.stop - tokens.start
            above = grad[:, tokens].to(weight.dtype).contiguous()
            part = x[:, tokens.start : tokens.stop + k - 1].to(weight.dtype)
            taps = _taps(weight, near, tokens)
            buffer = torch.empty_like(above)
            for j in range(k):
                grad_x[:, tokens.start + j : tokens.stop + j].addcmul_(above, taps[j])
                torch.mul(above, part[:, j : j + size], out=buffer)
                if near is not None:
                    buffer.mul_(near[:, tokens, j, None])
                grad_weight[j] += buffer.sum((0, 1))
            if grad_bias is not None:
                grad_bias += above.sum((0, 1))
        return grad_x.to(x.dtype), grad_weight.t(), grad_bias, None
