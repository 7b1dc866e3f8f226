"""Learned positions: Gehring et al. 2017, Convolutional Sequence to Sequence Learning (arXiv:1705.03122), section 3.1;
Devlin et al. 2018, BERT (arXiv:1810.04805).

x_k + p_k,     p a trainable table of n rows: there is no position n
"""

import torch
from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding


def real_positions(context: Context) -> Tensor:
    """The positions (b t) or (1 t), but 0 at padding, whose positions may be anything."""
    return context.positions if context.mask is None else torch.where(context.mask, context.positions, 0)


def check_range(positions: Tensor, limit: int, reason: str) -> None:
    """ValueError naming the first position outside 0 .. limit-1 and the reason. A traced graph cannot look."""
    if torch.compiler.is_compiling() or not positions.numel():
        return
    outside = (positions < 0) | (positions >= limit)
    if bool(outside.any()):
        raise ValueError(f"position {int(positions[outside][0])} lies outside 0..{limit - 1}: {reason}.")


class Learned(PositionEncoding):
    """A table (rows, dim), added to the embeddings.

    Raises ValueError for a position that has no row; inside a compiled graph the look-up itself fails.
    """

    table_class: type[nn.Module] = nn.Embedding

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        if rows < 1:
            raise ValueError(f"a table of positions needs at least one row, not {rows}.")
        self.rows, self.table = rows, self.table_class(rows, dim)

    def codes(self, context: Context) -> Tensor:
        """p_k (b t d) or (1 t d) for the positions k of the context."""
        positions = real_positions(context)
        reason = f"the table has {self.rows} rows, and position_encoding='hierarchical' extends it"
        check_range(positions, self.rows, reason)
        return self.table(positions)

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        return x + self.codes(context).to(x.dtype)
