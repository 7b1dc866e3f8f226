r"""One block of the matrix-state recurrence whose decay g < 0 is a constant of each head.

With q'_i = exp((i+1) g) q_i and k'_j = exp(-(j+1) g) k_j, counted from the block's start, every product of q' and k'
carries the decay between its tokens, so that the block of m tokens is one without decay:

    Y = tril(Q' K'^T) V + Q' S              S' = exp(m g) (S + K'^T V)

and so is its gradient, with exp(m g) G in the place of G = dL/dS'. Only weak decays can be folded so: exp(-m g) must
not overflow, see ``foldable``.
"""

import torch
from torch import Tensor

from .matrix_blocks import CHUNK
from .matrix_scalar_cell import ScalarCell


def foldable(decay: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a block's decay (h) and its inverse are well inside the range of the dtype."""
    limit = 600.0 if dtype == torch.float64 else 60.0
    return bool((decay * CHUNK > -limit).all())


class ConstantCell(ScalarCell):
    """The algebra of a block without decay, on queries and keys that carry it."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, dtype: torch.dtype, size: int = CHUNK) -> None:
        super().__init__(q, k, v, None, dtype, size)
        sums = torch.arange(1, size + 1, device=q.device) * decay.double().repeat(q.shape[0])[:, None]  # (n size)
        self.past, self.inverse = sums.exp().to(dtype)[..., None], (-sums).exp().to(dtype)[..., None]

    def load(self, number: int) -> None:
        super().load(number)
        m = self.q.shape[1]
        self.total = self.past[:, m - 1 : m]
        self.q = torch.mul(self.q, self.past[:, :m], out=self._buffer("query", self.q))
        self.k = torch.mul(self.k, self.inverse[:, :m], out=self._buffer("key", self.k))

    def advance(self, state: Tensor, out: Tensor) -> None:
        super().advance(state, out)
        out.mul_(self.total)

    def gradients(
        self, state: Tensor, ahead: Tensor, dy: Tensor, with_decay: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        m = self.q.shape[1]
        dq, dk, dv, decay = super().gradients(state, ahead.mul_(self.total), dy, with_decay)
        return dq.mul_(self.past[:, :m]), dk.mul_(self.inverse[:, :m]), dv, decay
