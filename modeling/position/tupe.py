"""Untied absolute and relative positions: Ke et al. 2021, TUPE (arXiv:2006.15595), TUPE-R.

score_ij = q_i k_j^T / sqrt(2d) + c_ij
c_ij = (p_i U_Q) (p_j U_K)^T / sqrt(2d) + b_(j-i),   but theta_1 in the row i = 0 and theta_2 in the column j = 0

p are trained absolute embeddings after a norm, U_Q and U_K belong to the model and not to a layer, b is T5's bias, and
theta has one number for each head. The first token, [CLS], stands for the sentence and not for a place.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding, known_keys
from .learned import real_positions
from .stored import Stored
from .t5 import T5Bias

TERMS = 2


def check_positions(context: Context, length: int) -> None:
    """ValueError for a real token beyond a table of `length` rows; not known while tracing."""
    positions = real_positions(context)
    if torch.compiler.is_compiling() or not positions.numel():
        return
    if (last := int(positions.max())) >= length:
        raise ValueError(
            f"position {last} lies beyond the table of {length} absolute positions: raise `max_position_embeddings`."
        )


class Tupe(PositionEncoding):
    """c (b h t s) or (1 h t s), shared by all layers, which add it with `SharedBias`.

    Raises ValueError for positions that reach `length`.
    """

    def __init__(self, width: int, heads: int, dim: int, length: int, relative: T5Bias, norm_eps: float) -> None:
        super().__init__()
        self.length, self.heads, self.scaling = length, heads, (TERMS * dim) ** -0.5
        self.embed_positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.position_query = nn.Linear(width, heads * dim, bias=False)
        self.position_key = nn.Linear(width, heads * dim, bias=False)
        self.relative = relative
        self.theta = Stored(2, heads)

    def mapped(self, positions: Tensor, projection: nn.Linear) -> Tensor:
        """p U (b h t d) of positions (b t)."""
        # Padding and the room of a static cache may lie beyond the table; neither is seen.
        codes = self.norm(self.embed_positions(positions.clamp(0, self.length - 1)))
        return projection(codes).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def share(self, x: Tensor, context: Context) -> Any:
        check_positions(context, self.length)
        relative = self.relative.share(x, context)
        keys = known_keys(context)
        asked = self.mapped(context.positions, self.position_query)
        met = self.mapped(keys, self.position_key)
        scores = asked @ met.transpose(2, 3) * self.scaling + relative
        row, column = self.theta()[:, None, :, None, None].unbind(0)
        scores = torch.where((keys == 0)[:, None, None, :], column, scores)
        return torch.where((context.positions == 0)[:, None, :, None], row, scores)
