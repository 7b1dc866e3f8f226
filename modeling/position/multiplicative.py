"""Multiplicative positions (zhuanlan.zhihu.com/p/183234823; Su 2021, kexue.fm/archives/8130).

x_k (1 + p_k)     channel by channel, p a trainable table that begins at zero
"""

from torch import Tensor, nn

from ..state import Context
from .hierarchical import Hierarchical


class Multiplicative(Hierarchical):
    """Embeddings times 1 + p_k. A fresh model is the identity: it knows no positions until it has been trained.

    Positions beyond the table are put together from its rows as in `Hierarchical`.
    """

    def initialize(self, std: float) -> None:
        nn.init.zeros_(self.table.weight)

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        return x * (1 + self.codes(context)).to(x.dtype)
