r"""One block of the matrix-state recurrence whose decay is none, or one number per head and token.

With c_i the sum of decays up to token i of the block, T its last token and D_ij = exp(c_i - c_j) for i >= j, else 0:

    Y = (Q K^T o D) V + (exp(c) Q) S            S' = exp(c_T) S + (exp(c_T - c) K)^T V

and backwards, with G = dL/dS' and dY given:

    dQ = (dY V^T o D) K + exp(c) dY S^T         dV = (Q K^T o D)^T dY + (exp(c_T - c) K) G
    dK = (dY V^T o D)^T Q + exp(c_T - c) V G^T  dL/dS = exp(c_T) G + (exp(c) Q)^T dY
    dL/dc_i = sum_(j<i) P_ij - sum_(j>i) P_ji + (share of S) - (share of S'),   P = Q K^T o D o dY V^T
    dL/dg_t = <dL/dS, S> - sum_(i<t) dL/dc_i

P's diagonal cancels and is left out, or its rounding error would drown the gradient of a strong decay.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .matrix_blocks import CHUNK, Reader, Scratch, decay_gradient
from .matrix_plain import decay_floor

LOG2E = math.log2(math.e)


class Factors(NamedTuple):
    """The decays of a block of m tokens: between its tokens, from its start, to its end, and as a whole."""

    pairs: Tensor  # (n m m), lower triangular
    past: Tensor  # (n m 1)
    ahead: Tensor  # (n m 1)
    total: Tensor  # (n 1 1)


def factors_of(decay: Tensor, dtype: torch.dtype) -> Factors:
    """Return the factors of a block's decays (n m), float64 and in powers of two.

    The sums are split into two numbers of the working dtype, since a difference of two large ones must stay exact.
    """
    sums = decay.cumsum(-1)
    high = sums.to(dtype)
    pairs = high[:, :, None] - high[:, None, :]
    if dtype != torch.float64:
        low = (sums - high).to(dtype)
        pairs.add_(low[:, :, None]).sub_(low[:, None, :])
    last = sums[:, -1:]
    return Factors(
        pairs.exp2_().tril_(),
        sums.to(dtype).exp2()[..., None],
        (last - sums).to(dtype).exp2()[..., None],
        last.to(dtype).exp2()[..., None],
    )


class ScalarCell:
    """The algebra of one block after another; ``load`` chooses the block, the other methods read or change a state."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, dtype: torch.dtype, size: int = CHUNK
    ) -> None:
        self.read_q, self.read_k, self.read_v = (Reader(x, dtype, size) for x in (q, k, v))
        self.dtype, self.scratch = dtype, Scratch(dtype, q.device)
        self.read_decay = None if decay is None else Reader(decay, torch.float64, size)
        self.factors = None

    def load(self, number: int) -> None:
        """Turn to a block."""
        self.q, self.k, self.v = self.read_q(number), self.read_k(number), self.read_v(number)
        if self.read_decay is not None:
            decay = self.read_decay(number) * LOG2E
            self.factors = factors_of(decay.clamp_(min=decay_floor(self.dtype)), self.dtype)

    def output(self, state: Tensor | None) -> Tensor:
        """Return the block's y (n m dv), given the state at its start (None is zero); valid until the next call."""
        y = torch.bmm(self._scores(), self.v, out=self._buffer("y", self.v))
        return y if state is None else y.baddbmm_(self._from_past(self.q, "query"), state)

    def advance(self, state: Tensor, out: Tensor) -> None:
        """Write the state at the block's end, given the one at its start, to ``out``, which may be the same tensor."""
        key = self._to_end(self.k, "key").transpose(1, 2)
        if out is not state:
            out.copy_(state)
        if self.factors is not None:
            out.mul_(self.factors.total)
        out.baddbmm_(key, self.v)

    def gradients(
        self, state: Tensor, ahead: Tensor, dy: Tensor, with_decay: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return dq, dk, dv and, if asked for, d decay (n m); ``state`` is the one at the block's start.

        ``ahead`` is the gradient of the state at the end, and becomes that of the state at the start.
        """
        scores = self._scores()
        dv = torch.bmm(scores.transpose(1, 2), dy, out=self._buffer("dv", self.v))
        dv.baddbmm_(self._to_end(self.k, "key"), ahead)
        links = torch.bmm(dy, self.v.transpose(1, 2), out=self.scratch("links", *scores.shape))
        if with_decay:
            scores.mul_(links).tril_(-1)
        self._mask(links)
        dq = self._from_past(torch.bmm(dy, state.transpose(1, 2), out=self._buffer("dq", self.q)), None)
        dk = self._to_end(torch.bmm(self.v, ahead.transpose(1, 2), out=self._buffer("dk", self.k)), None)
        shares = self._decay_shares(scores, dq, dk) if with_decay else None
        dq.baddbmm_(links, self.k)
        dk.baddbmm_(links.transpose(1, 2), self.q)
        if self.factors is not None:
            ahead.mul_(self.factors.total)
        ahead.baddbmm_(self._from_past(self.q, "query").transpose(1, 2), dy)
        if shares is None:
            return dq, dk, dv, None
        return dq, dk, dv, decay_gradient(shares, torch.mul(state, ahead).sum((1, 2)))

    def _decay_shares(self, pairs: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
        shares = pairs.sum(-1).sub_(pairs.sum(-2))
        product = torch.mul(self.q, dq, out=self._buffer("product", self.q))
        shares.add_(product.sum(-1))
        return shares.sub_(torch.mul(self.k, dk, out=product).sum(-1))

    def _scores(self) -> Tensor:
        n, m = self.q.shape[:2]
        return self._mask(torch.bmm(self.q, self.k.transpose(1, 2), out=self.scratch("scores", n, m, m)))

    def _mask(self, pairs: Tensor) -> Tensor:
        return pairs.tril_() if self.factors is None else pairs.mul_(self.factors.pairs)

    def _from_past(self, x: Tensor, name: str | None) -> Tensor:
        return x if self.factors is None else torch.mul(x, self.factors.past, out=self._buffer(name, x))

    def _to_end(self, x: Tensor, name: str | None) -> Tensor:
        return x if self.factors is None else torch.mul(x, self.factors.ahead, out=self._buffer(name, x))

    def _buffer(self, name: str | None, like: Tensor) -> Tensor:
        return like if name is None else self.scratch(name, *like.shape)
