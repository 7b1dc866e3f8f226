r"""One block of m tokens of Mamba-2's recurrence, all heads of one row at once.

With X = delta x, c_i the sum of decays up to token i of the block, T its last token, D_ij = exp(c_i - c_j) for i >= j,
else 0, a head of a group has

    Y = (D o C B^T) X + exp(c) C S            S' = exp(c_T) S + B^T (exp(c_T - c) X)

and backwards, with G = dL/dS' and dY given, R = D o dY X^T and sums over the heads of the group:

    dX = (D o C B^T)^T dY + exp(c_T - c) B G          dL/dS = exp(c_T) G + C^T (exp(c) dY)
    dC = (sum R) B + sum exp(c) dY S^T                dB = (sum R)^T C + sum exp(c_T - c) X G^T
    dL/dc_i = sum_(j<i) P_ij - sum_(j>i) P_ji + exp(c_i) dY_i . (C S)_i - X_i . (exp(c_T - c) B G)_i,   P = R o C B^T
    dL/dg_t = <dL/dS, S> - sum_(i<t) dL/dc_i

C B^T is one product for all heads of a group, and so is every product with the state, which lies as (g n r p) for
r = h/g heads of a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .matrix_blocks import CHUNK, Scratch, decay_gradient
from .matrix_plain import decay_floor
from .matrix_scalar_cell import LOG2E, factors_of


class BlockGradients(NamedTuple):
    """The gradients of one block's inputs; valid until the next block."""

    x: Tensor  # (m g r p)
    delta: Tensor  # (m h)
    decay: Tensor  # (m h)
    B: Tensor  # (g m n)
    C: Tensor  # (g m n)


class SSDCell:
    """The algebra of one block after another of one row; `load` chooses the block."""

    def __init__(self, x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, scratch: Scratch) -> None:
        """x (t h p), delta and decay (t h), B and C (t g n), of any dtype; sums are of the scratch memory's."""
        self.groups, self.heads = B.shape[1], x.shape[1]
        self.blocks = [part.split(CHUNK) for part in (x, delta, decay, B, C)]
        self.scratch = scratch

    def load(self, number: int) -> None:
        """Turn to a block."""
        x, delta, decay, B, C = (blocks[number] for blocks in self.blocks)
        self.x = self._by_group(self._wide("x", x))  # (m g r p)
        self.delta = self._by_group(self._wide("delta", delta)[..., None])  # (m g r 1)
        self.B, self.C = self._wide("B", B).transpose(0, 1), self._wide("C", C).transpose(0, 1)  # (g m n)
        dtype = self.scratch.dtype
        exponents = (decay.t().double() * LOG2E).clamp_(min=decay_floor(dtype))  # (h m)
        factors = factors_of(exponents, dtype)
        self.pairs, self.total = factors.pairs, self._by_group(factors.total, 0)  # (h m m), (g r 1 1)
        self.past, self.ahead = (self._by_group(part.transpose(0, 1)) for part in (factors.past, factors.ahead))
        self.input = torch.mul(self.x, self.delta, out=self.scratch("input", *self.x.shape))

    def output(self, state: Tensor | None, out: Tensor) -> None:
        """Write the block's y to `out` (m h p), given the state (g n r p) at its start (None is zero)."""
        weights = self._by_group(self.pairs, 0).mul_(self._scores()[:, None]).flatten(0, 1)
        inside = self.scratch("inside", self.heads, *self._per_head(self.input).shape[1:])
        inside = self._tokens_first(torch.bmm(weights, self._per_head(self.input), out=inside))
        out = self._by_group(out)
        if state is None:
            out.copy_(inside)
        else:
            torch.addcmul(inside, self._read(self.C, state), self.past, out=out)

    def advance(self, state: Tensor) -> None:
        """Change the state at the block's start into the one at its end."""
        late = torch.mul(self.input, self.ahead, out=self.scratch("late", *self.x.shape))
        state.mul_(self.total.transpose(1, 2))
        state.flatten(2).baddbmm_(self.B.transpose(1, 2), self._per_group(late))

    def gradients(self, state: Tensor, ahead: Tensor, dy: Tensor) -> BlockGradients:
        """The gradients for dy (m h p), given the state at the block's start and the gradient of the one at its end.

        `ahead`, that gradient, becomes the one of the state at the start. Both are (g n r p).
        """
        dy = self._by_group(self._wide("dy", dy))
        scores, per_head = self._scores(), self._per_head(dy)
        links = self.scratch("links", *self.pairs.shape)
        torch.bmm(per_head, self._per_head(self.input).transpose(1, 2), out=links).mul_(self.pairs)
        weights = self._by_group(self.pairs, 0).mul_(scores[:, None]).flatten(0, 1)
        inside = self.scratch("inside", *per_head.shape)
        inside = self._tokens_first(torch.bmm(weights.transpose(1, 2), per_head, out=inside))
        late = self._read(self.B, ahead).mul_(self.ahead)  # (m g r p)
        shares = torch.mul(late, self.input, out=self.scratch("product", *late.shape)).sum(-1).neg_()
        dinput = late.add_(inside)
        ddelta = torch.mul(dinput, self.x, out=self.scratch("product", *late.shape)).sum(-1).flatten(1)
        dx = torch.mul(dinput, self.delta, out=self.scratch("dx", *late.shape))

        early = torch.mul(dy, self.past, out=self.scratch("early", *dy.shape))
        shares.add_(self._read(self.C, state).mul_(early).sum(-1))
        products = torch.mul(self._by_group(links, 0), scores[:, None], out=self._by_group(self.pairs, 0))
        products = products.flatten(0, 1).tril_(-1)
        shares = shares.flatten(1).t() + products.sum(-1) - products.sum(-2)  # (h m)

        links = self._by_group(links, 0).sum(1)  # (g m m)
        dC = torch.bmm(links, self.B).baddbmm_(self._per_group(early), state.flatten(2).transpose(1, 2))
        torch.mul(self.input, self.ahead, out=dinput)
        dB = torch.bmm(links.transpose(1, 2), self.C).baddbmm_(
            self._per_group(dinput), ahead.flatten(2).transpose(1, 2)
        )
        ahead.mul_(self.total.transpose(1, 2))
        ahead.flatten(2).baddbmm_(self.C.transpose(1, 2), self._per_group(early))
        start = torch.mul(state, ahead, out=self.scratch("states", *state.shape)).sum((1, 3)).flatten()
        return BlockGradients(dx, ddelta, decay_gradient(shares, start).t(), dB, dC)

    def _scores(self) -> Tensor:
        """C B^T (g m m)."""
        m = self.x.shape[0]
        return torch.bmm(self.C, self.B.transpose(1, 2), out=self.scratch("scores", self.groups, m, m))

    def _read(self, keys: Tensor, state: Tensor) -> Tensor:
        """The products (m g r p) of keys (g m n) with a state (g n r p)."""
        m, (g, _, r, p) = keys.shape[1], state.shape
        read = torch.bmm(keys, state.flatten(2), out=self.scratch("read", g, m, r * p))
        return read.unflatten(2, (r, p)).transpose(0, 1)

    def _wide(self, name: str, part: Tensor) -> Tensor:
        """A block in the dtype of the sums; copied only where it has another."""
        return part if part.dtype == self.scratch.dtype else self.scratch(f"wide {name}", *part.shape).copy_(part)

    def _by_group(self, part: Tensor, axis: int = 1) -> Tensor:
        """The heads of an axis parted into groups and heads of a group."""
        return part.unflatten(axis, (self.groups, self.heads // self.groups))

    @staticmethod
    def _per_head(part: Tensor) -> Tensor:
        """(m g r p) as (h m p)."""
        return part.flatten(1, 2).transpose(0, 1)

    def _tokens_first(self, part: Tensor) -> Tensor:
        """(h m p) as (m g r p)."""
        return self._by_group(part.transpose(0, 1))

    @staticmethod
    def _per_group(part: Tensor) -> Tensor:
        """(m g r p) as (g m r*p)."""
        return part.flatten(2).transpose(0, 1)
