"""Sinusoidal relative positions: Wei et al. 2019, NEZHA (arXiv:1909.00204), section 2.1.

e_ij = q_i (k_j + R_ij)^T / sqrt(d),   o_i = sum_j a_ij (v_j + R_ij),   n = clip(j - i, -c, c)
R_ij[2m] = sin(n / 10000^(2m/d)),   R_ij[2m+1] = cos(n / 10000^(2m/d))

Shaw's attention with one fixed table for keys and values, all heads and all layers.
"""

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding
from .rotary import geometric, rotation
from .shaw import check_clip, clipped_distances, read_by_distance, score_by_distance


class Nezha(PositionEncoding):
    """It has no parameters; an odd head size leaves out the last cosine."""

    def __init__(self, dim: int, clip: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.clip, self.base = dim, check_clip(clip), float(base)

    def table(self, context: Context, like: Tensor) -> Tensor:
        """R (2 clip + 1, d) of the distances i - j from -clip to clip, in the dtype of `like`."""

        def compute() -> Tensor:
            frequencies = geometric(self.base, (self.dim + 1) // 2, self.dim / 2, like.device)
            places = torch.arange(self.clip, -self.clip - 1, -1, device=like.device)[None]
            cos, sin = rotation(places, frequencies, torch.promote_types(like.dtype, torch.float32))
            return torch.stack((sin, cos), dim=-1).flatten(-2)[0, 0, :, : self.dim].to(like.dtype)

        return context.once(("nezha", self.dim, self.clip, self.base, like.dtype), compute)

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return score_by_distance(q, self.table(context, q), clipped_distances(context, self.clip))

    def read(self, weights: Tensor, context: Context) -> Tensor:
        return read_by_distance(weights, self.table(context, weights), clipped_distances(context, self.clip))
