"""Multiplicative positions (zhuanlan.zhihu.com/p/183234823; Su 2021, kexue.fm/archives/8130).

x_k (1 + p_k)     channel by channel, p a trainable table that begins at zero
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..state import Context
from .hierarchical import Hierarchical


class ZeroTable(nn.Module):
    """An embedding that begins at zero. Were it an nn.Embedding, models would draw it like any other."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim))

    def initialize(self, std: float) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight)


class Multiplicative(Hierarchical):
    """Embeddings times 1 + p_k. A fresh model is the identity: it knows no positions until it has been trained.

    Positions beyond the table are put together from its rows as in `Hierarchical`.
    """

    table_class = ZeroTable

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        return x * (1 + self.codes(context)).to(x.dtype)
