"""Sinusoidal positions: Vaswani et al. 2017, Attention Is All You Need (arXiv:1706.03762), section 3.5.

p_(k, 2i) = sin(k / 10000^(2i/d)),   p_(k, 2i+1) = cos(k / 10000^(2i/d)),   x_k + p_k
"""

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding
from .rotary import geometric, rotation


class Sinusoidal(PositionEncoding):
    """Added to the embeddings; an odd width leaves out the last cosine."""

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base = dim, float(base)

    def codes(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """p_k (b t d) of the positions k (b t)."""
        frequencies = geometric(self.base, (self.dim + 1) // 2, self.dim / 2, positions.device)
        cos, sin = rotation(positions, frequencies, dtype)
        return torch.stack((sin, cos), dim=-1).flatten(-2)[:, 0, :, : self.dim]

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        return x + self.codes(context.positions, torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
