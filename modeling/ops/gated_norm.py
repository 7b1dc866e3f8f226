"""An RMS norm beside a gate, in blocks of tokens that stay in the cache.

    rms(y * silu(z)) * w    or, with the norm before the gate,    rms(y) * w * silu(z)

Written plainly it goes eight times through memory. The backward computes each block again and keeps nothing but the
inputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import choose_form

BLOCK_NUMBERS = 2**17


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, before_gate: bool) -> Tensor:
    """y, z (b t d), weight (d) -> (b t d) in the dtype of the weight, each of `groups` parts of d normed alone.

    Computed in float32, or float64 where y is. The fast form can be differentiated once only.
    """
    if choose_form(y.device, y.shape[1]) == "fast" and not torch.compiler.is_compiling():
        return _Blocks.apply(y, z, weight, groups, eps, before_gate)
    return _plain(y, z, weight, groups, eps, before_gate)


def _plain(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, before_gate: bool) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    gate = F.silu(z.to(wide))
    y = (y.to(wide) if before_gate else y * gate).unflatten(-1, (groups, -1))
    y = F.rms_norm(y, y.shape[-1:], eps=eps).flatten(-2) * weight.to(wide)
    return (y * gate if before_gate else y).to(weight.dtype)


def _split(*parts: Tensor) -> list[tuple[Tensor, ...]]:
    """Parts (b t d) as blocks of some tokens."""
    b, _, d = parts[0].shape
    size = max(1, BLOCK_NUMBERS // (b * d))
    return list(zip(*(part.split(size, 1) for part in parts), strict=True))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(y, z, weight)
        ctx.options = options
        out = torch.empty(y.shape, dtype=weight.dtype, device=y.device)
        for y_block, z_block, target in _split(y, z, out):
            target.copy_(_plain(y_block, z_block, weight, *options))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight = ctx.saved_tensors
        dy, dz = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (y, z))
        dweight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for y_block, z_block, above, dy_block, dz_block in _split(y, z, grad, dy, dz):
            leaves = [part.detach().requires_grad_() for part in (y_block, z_block, weight)]
            with torch.enable_grad():
                out = _plain(leaves[0], leaves[1], leaves[2], *ctx.options)
            found = torch.autograd.grad(out, leaves, above)
            dy_block.copy_(found[0])
            dz_block.copy_(found[1])
            dweight += found[2]
        gradients = (dy, dz, dweight.to(weight.dtype), None, None, None)
        return tuple(part if need else None for part, need in zip(gradients, ctx.needs_input_grad, strict=True))
