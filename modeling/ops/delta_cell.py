r"""One block of the delta rule, folded so that it is one without decay.

With c_t the sum of the decays up to token t of the block, mid half-way between the first and the last, and

    q'_t = exp(c_t - mid) q_t   (a' likewise),   k'_t = exp(mid - c_t) k_t   (b' likewise),   S~ = exp(mid) S

every product of a query and a key carries the decay between their tokens. What reads, [q; a], and what writes, [k; b]
with [v; u], are stacked, a one token early (see ``delta_chunkwise``), and P = tril([q'; a'] [k'; b']^T):

    (I - L) U = shift(P_ak V + a' S~),   U_0 = a_0 S         Y = P_qk V + P_qb U + q' S~
    S' = exp(c_T - mid) (S~ + [k'; b']^T [V; U])

and backwards, with G the gradient of S' times exp(c_T - mid):

    (I - L)^T dU = P_qb^T dY + b' G          dZ = [dY; dU one token early]         dV = P_k^T dZ + k' G
    d[q'; a'] = tril(dZ [V; U]^T) [k'; b'] + dZ S~^T          d[k'; b'] = tril(..)^T [q'; a'] + [V; U] G^T
    dS~ = G + [q'; a']^T dZ          dL/dc_t = [q; a]_t d[q; a]_t - [k; b]_t d[k; b]_t

Neither factor may overflow, so strong decays need short blocks: ``block_size``. Between packed sequences P, S~ and
what a block leaves behind are masked instead of decayed.
"""

import math

import torch
from torch import Tensor

from .matrix_blocks import Reader, Scratch, decay_gradient
from .matrix_plain import decay_floor

LOG2E = math.log2(math.e)
SIZES = (32, 16, 8, 4, 2)


def block_size(decay: Tensor, dtype: torch.dtype) -> int:
    """Return the largest block over which no decay (b h t dk) leaves the range of the dtype."""
    limit = 600.0 if dtype == torch.float64 else 60.0
    strongest = -max(decay.amin().item(), decay_floor(dtype))
    return next((size for size in SIZES if strongest * (size - 1) <= limit), SIZES[-1])


class DeltaCell:
    """The algebra of one block after another; ``load`` chooses the block, the other methods read or change a state."""

    def __init__(self, inputs: tuple[Tensor, ...], segments: Tensor | None, dtype: torch.dtype, size: int) -> None:
        *vectors, decay = inputs
        self.readers = [Reader(x, dtype, size) for x in vectors]
        self.read_decay = Reader(decay, torch.float64, size)
        self.heads, self.size, self.dtype = decay.shape[1], size, dtype
        self.segments = segments
        self.scratch = Scratch(dtype, decay.device)
        self.future = torch.ones(1, size, size, dtype=torch.bool, device=decay.device).triu_(1)
        self._hide_from_both(self.future)

    def load(self, number: int) -> None:
        """Turn to a block."""
        q, k, self.v, a, b = (read(number) for read in self.readers)
        self.n, self.m, self.d = q.shape
        self.first = a[:, :1]
        self._fold(self.read_decay(number))
        self.q, self.k = (self.scratch(name, self.n, 2, self.m, self.d) for name in ("q", "k"))
        torch.mul(q, self.query_factor, out=self.q[:, 0])
        torch.mul(a[:, 1:], self.query_factor[:, :-1], out=self.q[:, 1, :-1])
        self.q[:, 1, -1].zero_()
        torch.mul(k, self.key_factor, out=self.k[:, 0])
        torch.mul(b, self.key_factor, out=self.k[:, 1])
        self.q, self.k = self.q.flatten(1, 2), self.k.flatten(1, 2)
        self._see(number)

    def _fold(self, decay: Tensor) -> None:
        sums = (decay.clamp(min=decay_floor(self.dtype)) * LOG2E).cumsum(1)
        mid = (sums[:, :1] + sums[:, -1:]) / 2
        self.query_factor = (sums - mid).to(self.dtype).exp2_()
        self.key_factor = self.query_factor.reciprocal()
        self.to_mid = mid.to(self.dtype).exp2().mT  # (n d 1)
        self.to_end = (sums[:, -1:] - mid).to(self.dtype).exp2_().mT

    def _see(self, number: int) -> None:
        """Find what tokens may see: one another, the state before the block (past), and who is in that after it."""
        hidden, self.past, self.last, self.kept = self.future[:, : self.m, : self.m], None, None, None
        if self.segments is None:
            if self.hidden.shape[-1] != 2 * self.m:
                self._hide_from_both(hidden)
            return
        start = number * self.size
        here = self.segments[:, start : start + self.m]
        before = self.segments[:, start - 1 : start] if start else torch.zeros_like(here[:, :1])
        per_head = [here[:, :, None] != here[:, None, :], here == before, here == here[:, -1:], here[:, -1:] == before]
        apart, past, last, kept = (x.repeat_interleave(self.heads, 0) for x in per_head)
        self._hide_from_both(hidden | apart)
        self.past, self.last = (x.repeat(1, 2)[..., None].to(self.dtype) for x in (past, last))  # (n 2m 1)
        self.kept = kept[..., None].to(self.dtype)

    def output(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's y and u (n m dv), given the state at its start; valid until the next call."""
        m = self.m
        scores = self._scores()
        read = torch.bmm(scores[:, :, :m], self.v, out=self.scratch("read", self.n, 2 * m, self.v.shape[2]))
        read.baddbmm_(self._past_queries(), torch.mul(state, self.to_mid, out=self.scratch("start", *state.shape)))
        rows = self.scratch("rows", *self.v.shape)
        torch.bmm(self.first, state, out=rows[:, :1])
        rows[:, 1:].copy_(read[:, m:-1])
        u = torch.linalg.solve_triangular(self._system(scores), rows, upper=False, unitriangular=True)
        return torch.baddbmm(read[:, :m], scores[:, :m, m:], u, out=self.scratch("y", *self.v.shape)), u

    def advance(self, state: Tensor, u: Tensor, out: Tensor) -> None:
        """Write the state at the block's end, given the one at its start and u, to ``out``; may be the same tensor."""
        torch.mul(state, self.to_mid, out=out)
        if self.kept is not None:
            out.mul_(self.kept)
        out.baddbmm_(self._last_keys().mT, self._values(u)).mul_(self.to_end)

    def gradients(self, state: Tensor, ahead: Tensor, dy: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """Return dq, dk, dv, da, db and d decay (n m d); ``state`` is the one at the block's start, u what it gave.

        ``ahead`` is the gradient of the state at the end, and becomes that of the state at the start.
        """
        m = self.m
        scores, values = self._scores(), self._values(u)
        ahead.mul_(self.to_end)
        written = torch.bmm(self._last_keys(), ahead, out=self.scratch("written", *values.shape))
        rows = torch.baddbmm(written[:, m:], scores[:, :m, m:].mT, dy, out=self.scratch("rows", *dy.shape))
        du = torch.linalg.solve_triangular(self._system(scores).mT, rows, upper=True, unitriangular=True)
        dz = self.scratch("dz", *values.shape)
        dz[:, :m].copy_(dy)
        dz[:, m:-1].copy_(du[:, 1:])
        dz[:, -1].zero_()
        dv = torch.baddbmm(written[:, :m], scores[:, :, :m].mT, dz, out=self.scratch("dv", *dy.shape))
        links = self._hide(torch.bmm(dz, values.mT, out=self.scratch("links", *scores.shape)))
        start = torch.mul(state, self.to_mid, out=self.scratch("start", *state.shape))
        dq = self._masked(torch.bmm(dz, start.mT, out=self.scratch("dq", *self.q.shape)), self.past)
        dk = self._masked(torch.bmm(values, ahead.mT, out=self.scratch("dk", *self.k.shape)), self.last)
        dq.baddbmm_(links, self.k)
        dk.baddbmm_(links.mT, self.q)
        shares = (self.q * dq).addcmul_(self.k, dk, value=-1).view(self.n, 2, m, self.d).sum(1)
        if self.kept is not None:
            ahead.mul_(self.kept)
        ahead.baddbmm_(self._past_queries().mT, dz).mul_(self.to_mid)
        decay = decay_gradient(shares, torch.mul(state, ahead).sum(-1))
        da = self.scratch("da", self.n, m, self.d)
        torch.bmm(du[:, :1], state.mT, out=da[:, :1])
        torch.mul(dq[:, m:-1], self.query_factor[:, :-1], out=da[:, 1:])
        ahead.baddbmm_(self.first.mT, du[:, :1])
        dq, (dk, db) = dq[:, :m].mul_(self.query_factor), (x.mul_(self.key_factor) for x in dk.split(m, 1))
        return dq, dk, dv, da, db, decay

    def _scores(self) -> Tensor:
        """P (n 2m 2m)."""
        shape = self.n, 2 * self.m, 2 * self.m
        return self._hide(torch.bmm(self.q, self.k.mT, out=self.scratch("scores", *shape)))

    def _hide(self, pairs: Tensor) -> Tensor:
        """Clear in (n 2m 2m) what may not be seen: infinite, perhaps, in the shortest blocks, which hold any decay."""
        if self.size > SIZES[-1]:
            return pairs.mul_(self.seen)
        return pairs.masked_fill_(self.hidden, 0)

    def _hide_from_both(self, hidden: Tensor) -> None:
        """Keep what may not be seen (1|n m m) for both streams of queries and of keys."""
        self.hidden = hidden.repeat(1, 2, 2)
        self.seen = (~self.hidden).to(self.dtype)

    def _system(self, scores: Tensor) -> Tensor:
        """-L (n m m); its diagonal is not read."""
        system = self.scratch("system", self.n, self.m, self.m)
        system[:, 0].zero_()
        torch.neg(scores[:, self.m : -1, self.m :], out=system[:, 1:])
        return system

    def _values(self, u: Tensor) -> Tensor:
        values = self.scratch("values", self.n, 2 * self.m, u.shape[2])
        values[:, : self.m].copy_(self.v)
        values[:, self.m :].copy_(u)
        return values

    def _past_queries(self) -> Tensor:
        return self.q if self.past is None else torch.mul(self.q, self.past, out=self.scratch("seeing", *self.q.shape))

    def _last_keys(self) -> Tensor:
        return (
            self.k if self.last is None else torch.mul(self.k, self.last, out=self.scratch("staying", *self.k.shape))
        )

    def _masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else x.mul_(mask)
