"""Hierarchical decomposition of learned positions: Su 2020 (kexue.fm/archives/7947). n rows serve n^2 positions.

u_i = (p_i - alpha p_0) / (1 - alpha),     q_(i n + j) = alpha u_i + (1 - alpha) u_j
                                                       = p_j + alpha / (1 - alpha) (p_i - p_0)

The first n positions have the rows of the table, bit for bit in the second form.
alpha = 1/2 would give i n + j and j n + i the same code.
"""

import torch
from torch import Tensor

from ..state import Context
from .learned import Learned, check_range, real_positions


class Hierarchical(Learned):
    """The table of `Learned` under the same name, so that a model trained with it reads on beyond its rows.

    Raises ValueError for an alpha outside (0, 1) or of 1/2, and for a position beyond rows^2.
    """

    def __init__(self, rows: int, dim: int, alpha: float = 0.4) -> None:
        super().__init__(rows, dim)
        if not 0 < alpha < 1 or alpha == 0.5:
            raise ValueError(f"`alpha` must lie between 0 and 1 and not be 0.5, whose codes repeat: not {alpha}.")
        self.weight_of_row = alpha / (1 - alpha)

    def codes(self, context: Context) -> Tensor:
        positions, rows = real_positions(context), self.rows
        check_range(positions, rows**2, f"a table of {rows} rows serves {rows}^2 positions")
        across = torch.div(positions, rows, rounding_mode="floor")
        origin = self.table(torch.zeros_like(positions[:1, :1]))
        return self.table(positions - across * rows) + self.weight_of_row * (self.table(across) - origin)
