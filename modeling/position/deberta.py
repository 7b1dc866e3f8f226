"""Disentangled attention: He et al. 2021, DeBERTa (arXiv:2006.03654), equation 4.

score_ij = (q_i k_j^T + q_i K^r[delta(i, j)]^T + k_j Q^r[delta(j, i)]^T) / sqrt(3d)
K^r = P W_(k,r),   Q^r = P W_(q,r),   delta(i, j) = clip(i - j + c, 0, 2c - 1)

P (2c D) is one table for the model, as the paper has it without a norm; W_(k,r) and W_(q,r) belong to a layer.
The published code reads Q^r by delta(i, j) too, which mirrors what the last term learns.
"""

from typing import Any

from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding, distances
from .shaw import check_clip, pick
from .stored import Stored


class RelativeTable(PositionEncoding):
    """P (2 clip, width), which the layers read as `context.position`."""

    def __init__(self, width: int, clip: int) -> None:
        super().__init__()
        self.table = Stored(2 * check_clip(clip), width)

    def share(self, x: Tensor, context: Context) -> Any:
        return self.table()


class Disentangled(PositionEncoding):
    """A layer's two terms, content to position and position to content; either can be left out, and so can both.

    Scores are scaled by the number of terms that remain, 3 with both.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dim: int,
        clip: int,
        content_to_position: bool = True,
        position_to_content: bool = True,
    ) -> None:
        super().__init__()
        self.clip, self.heads = check_clip(clip), heads
        self.terms = 1 + content_to_position + position_to_content
        self.relative_key = nn.Linear(width, heads * dim, bias=False) if content_to_position else None
        self.relative_query = nn.Linear(width, heads * dim, bias=False) if position_to_content else None

    def meet(self, x: Tensor, projection: nn.Linear, context: Context, sign: int) -> Tensor:
        """x_i (P W)[clip(sign (i - j) + c, 0, 2c - 1)]^T: rows are queries where sign is 1, keys where it is -1."""

        def places() -> Tensor:
            far = distances(context) if sign > 0 else -distances(context).transpose(1, 2)
            return (far + self.clip).clamp(0, 2 * self.clip - 1)[:, None].contiguous()

        table = projection(context.position).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # (h d 2c)
        return pick(x @ table, context.once(("delta", self.clip, sign), places))

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        scaling, scores = (self.terms * q.shape[-1]) ** -0.5, None
        if self.relative_key is not None:
            scores = self.meet(q, self.relative_key, context, 1)
        if self.relative_query is not None:
            other = self.meet(k, self.relative_query, context, -1).transpose(2, 3)
            scores = other if scores is None else scores + other
        return None if scores is None else scores * scaling
