"""Attention with linear biases: Press et al. 2022, ALiBi (arXiv:2108.12409).

score_ij = q_i k_j^T / sqrt(d) - m_h |i - j|,   m_h = 2^(-8h/H) for h = 1 .. H, where H is a power of two

Other numbers of heads take those of the power of two below, then every second one of the power of two above.
"""

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding, distances


def slopes(heads: int) -> list[float]:
    """m of each head, as the paper's code has them for any number of heads."""
    below = 2 ** (heads.bit_length() - 1)
    first = [2.0 ** (-8 * head / below) for head in range(1, below + 1)]
    between = [2.0 ** (-4 * head / below) for head in range(1, 2 * below, 2)]
    return first + between[: heads - below]


class Alibi(PositionEncoding):
    """It has no parameters; in both directions the distance counts without its sign."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.slopes = slopes(heads)

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        def compute() -> Tensor:
            wide = torch.promote_types(q.dtype, torch.float32)
            slope = torch.tensor(self.slopes, dtype=wide, device=q.device)[:, None, None]
            return (distances(context).abs()[:, None] * -slope).to(q.dtype)

        return context.once(("alibi", len(self.slopes), q.dtype), compute)
