"""Rotary position embedding: Su et al. 2021, RoFormer (arXiv:2104.09864), equation 34.

(R_m x)_2i   = x_2i cos(m theta_i) - x_2i+1 sin(m theta_i)
(R_m x)_2i+1 = x_2i+1 cos(m theta_i) + x_2i sin(m theta_i),     theta_i = base^(-2i/d)

(R_m q)^T (R_n k) = q^T R_(n-m) k: only the distance remains.  Pairs are neighbours (interleaved), as in the paper.
"""

import math

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def geometric(base: float, pairs: int, steps: float, device: torch.device) -> Tensor:
    """base^(-i/steps) for i = 0 .. pairs-1, (pairs) in the widest dtype of the device."""
    return base ** (-torch.arange(pairs, dtype=wide_dtype(device), device=device) / steps)


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (b 1 t d/2) of positions (b t) times frequencies (d/2).

    Angles are reduced in float64 where the device has it: at position 65,536 float32 would be wrong by 0.004 rad.
    """
    wide = wide_dtype(positions.device)
    angles = positions.to(wide)[:, None, :, None] * frequencies.to(wide)
    angles = torch.remainder(angles, 2 * math.pi).to(dtype)
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels of x (b h t d) by the angles of cos and sin (b 1 t d/2)."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class Rotary(PositionEncoding):
    """theta_i = base^(-2i/d), or base^(-i/(d/2-1)) with `endpoint`, as torchscale's RetNet has it.

    Frequencies are computed in the forward call and kept in no buffer, which from_pretrained would leave unset.
    """

    def __init__(self, dim: int, base: float = 10000.0, endpoint: bool = False) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"rotary positions turn pairs of channels, so the head size must be even, not {dim}.")
        self.dim, self.base, self.endpoint = dim, float(base), endpoint

    def frequencies(self, device: torch.device) -> Tensor:
        """theta (d/2), float64 where the device has it."""
        pairs = self.dim // 2
        steps = max(pairs - 1, 1) if self.endpoint else pairs
        return geometric(self.base, pairs, steps, device)

    def rotate(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        cos, sin = context.once(
            ("rotary", self.dim, self.base, self.endpoint, dtype),
            lambda: rotation(context.positions, self.frequencies(q.device), dtype),
        )
        return rotate_pairs(q, cos, sin).to(q.dtype), rotate_pairs(k, cos, sin).to(k.dtype)
