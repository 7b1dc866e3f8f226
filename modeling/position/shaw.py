"""Relative positions: Shaw et al. 2018, Self-Attention with Relative Position Representations (arXiv:1803.02155).

e_ij = q_i (k_j + R^K_ij)^T / sqrt(d),   o_i = sum_j a_ij (v_j + R^V_ij),   R_ij = p[clip(i - j, -c, c)]

Neither R (t s d) is formed: q p_K^T (t 2c+1) is gathered by distance, and a is summed by distance before it meets p_V.
"""

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding, distances
from .stored import Stored


def clipped_distances(context: Context, clip: int) -> Tensor:
    """clip(i - j, -clip, clip) + clip, the row of each pair in a table of 2 clip + 1: (b 1 t s) or (1 1 t s) int64."""
    return context.once(
        ("clipped distances", clip), lambda: (distances(context).clamp(-clip, clip) + clip)[:, None].contiguous()
    )


def pick(scores: Tensor, places: Tensor) -> Tensor:
    """Entry places_ij of row i of scores (b h t n), for places (b 1 t s) or (1 1 t s): (b h t s)."""
    return scores.gather(-1, places.expand(*scores.shape[:3], -1))


def score_by_distance(q: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """q_i p_ij^T / sqrt(d) for q (b h t d) and a table p (n d) whose rows are named by places: (b h t s)."""
    return pick(q @ table.T * q.shape[-1] ** -0.5, places)


def read_by_distance(weights: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """sum_j a_ij p_ij for weights a (b h t s): (b t h d). Weights of one distance are summed in float32 at least."""
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    sums = wide.new_zeros(*weights.shape[:3], table.shape[0]).scatter_add(-1, places.expand_as(weights), wide)
    return (sums.to(weights.dtype) @ table).transpose(1, 2)


class Shaw(PositionEncoding):
    """Trained p_K and p_V (2 clip + 1, d), shared by the heads of a layer. Distances beyond `clip` look alike."""

    def __init__(self, dim: int, clip: int) -> None:
        super().__init__()
        self.clip = check_clip(clip)
        self.key_table = Stored(2 * clip + 1, dim)
        self.value_table = Stored(2 * clip + 1, dim)

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return score_by_distance(q, self.key_table(), clipped_distances(context, self.clip))

    def read(self, weights: Tensor, context: Context) -> Tensor:
        return read_by_distance(weights, self.value_table(), clipped_distances(context, self.clip))


def check_clip(clip: int) -> int:
    """`clip` itself. Raises ValueError where it is below 1."""
    if clip < 1:
        raise ValueError(f"`relative_clip` must be at least 1, not {clip}: it is the largest distance told apart.")
    return clip
