r"""One block of the matrix-state recurrence whose decay differs per token and channel (rows of the state).

    Y = A V + (exp(c) Q) S      A_ij = sum_d q_id k_jd exp(c_id - c_jd), i >= j
    S' = exp(c_T) S + (exp(c_T - c) K)^T V

The decay stands inside the product, so A is put together by halving the block (see ``matrix_chunkwise``): the corner
that a middle cuts off is (Q exp(middle to i)) (K exp(j to middle))^T, both exponentials at most 1. Backwards, each
corner hands its gradient to Q and K through the same factors, and

    dL/dc_i = q_i dq_i - k_i dk_i (without the diagonal of A)      dL/dg_t = (dL/dS o S) 1 - sum_(i<t) dL/dc_i
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .matrix_blocks import CHUNK, Reader, Scratch, decay_gradient

LOG2E = math.log2(math.e)


class Corner(NamedTuple):
    """The corners of one level of halving: B blocks of 2 * half tokens, seen as (n B half dk)."""

    half: int
    query_decay: Tensor
    key_decay: Tensor
    query: Tensor
    key: Tensor


class ChannelCell:
    """The algebra of one block after another; ``load`` chooses the block, the other methods read or change a state."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, dtype: torch.dtype, size: int = CHUNK) -> None:
        self.readers = [Reader(x, dtype, size) for x in (q, k, v, decay)]
        self.scratch = Scratch(dtype, q.device)

    def load(self, number: int) -> None:
        """Turn to a block; a short one is filled up with zeros to a power of two."""
        q, k, self.v, decay = (read(number) for read in self.readers)
        self.m = q.shape[1]
        self.width = 1 << (self.m - 1).bit_length()
        self.q, self.k = self._padded("q", q), self._padded("k", k)
        self.prefix, self.suffix = (self.scratch(name, *self.q.shape) for name in ("prefix", "suffix"))
        torch.mul(decay, LOG2E, out=self.prefix[:, : self.m])
        self.prefix[:, self.m :].zero_()
        self.suffix.zero_()
        self.joined = False

    def output(self, state: Tensor | None) -> Tensor:
        """Return the block's y (n m dv), given the state at its start (None is zero); valid until the next call."""
        scores = self._new_scores()
        for corner in self._corners():
            self._place(corner, scores)
        y = torch.bmm(scores[:, : self.m, : self.m], self.v, out=self.scratch("y", *self.v.shape))
        return y if state is None else y.baddbmm_(self._scaled(self.q, self.prefix, "from_past"), state)

    def advance(self, state: Tensor, out: Tensor) -> None:
        """Write the state at the block's end, given the one at its start, to ``out``, which may be the same tensor."""
        if not self.joined:
            for half in self._halves():
                self._join(half)
            self._finish()
        key = self._scaled(self.k, self.suffix, "to_end").transpose(1, 2)
        torch.mul(state, self._total(), out=out).baddbmm_(key, self.v)

    def gradients(
        self, state: Tensor, ahead: Tensor, dy: Tensor, with_decay: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return dq, dk, dv and, if asked for, d decay (n m dk); ``state`` is the one at the block's start.

        ``ahead`` is the gradient of the state at the end, and becomes that of the state at the start.
        """
        m = self.m
        links = self._links(dy)
        scores = self._new_scores()
        dq, dk = (self.scratch(name, *self.q.shape).zero_() for name in ("dq", "dk"))
        for corner in self._corners():
            self._place(corner, scores)
            self._corner_gradient(corner, links, dq, dk)
        dv = torch.bmm(scores[:, :m, :m].transpose(1, 2), dy, out=self.scratch("dv", *self.v.shape))
        dv.baddbmm_(self._scaled(self.k, self.suffix, "to_end"), ahead)
        dq, dk = dq[:, :m], dk[:, :m]
        dq.addcmul_(torch.bmm(dy, state.transpose(1, 2)), self.prefix[:, :m])
        dk.addcmul_(torch.bmm(self.v, ahead.transpose(1, 2)), self.suffix[:, :m])
        shares = (self.q[:, :m] * dq).addcmul_(self.k[:, :m], dk, value=-1) if with_decay else None
        diagonal = links.diagonal(dim1=1, dim2=2)[:, :m, None]
        dq.addcmul_(self.k[:, :m], diagonal)
        dk.addcmul_(self.q[:, :m], diagonal)
        ahead.mul_(self._total()).baddbmm_(self._scaled(self.q, self.prefix, "from_past").transpose(1, 2), dy)
        if shares is None:
            return dq, dk, dv, None
        return dq, dk, dv, decay_gradient(shares, torch.mul(state, ahead).sum(-1))

    def _halves(self) -> list[int]:
        return [1 << level for level in range((self.width - 1).bit_length())]

    def _halved(self, x: Tensor, half: int) -> Tensor:
        """View (n width d) as (n blocks 2 half d): the two halves of each block of 2 * half tokens."""
        return x.view(x.shape[0], -1, 2, half, x.shape[2])

    def _corners(self) -> Iterator[Corner]:
        """Walk up the levels; afterwards prefix and suffix are the factors from the block's start and to its end."""
        for half in self._halves():
            prefix, query = (self._halved(x, half)[:, :, 1] for x in (self.prefix, self.q))
            suffix, key = (self._halved(x, half)[:, :, 0] for x in (self.suffix, self.k))
            buffers = [self.scratch(name, *prefix.shape) for name in ("prefix'", "suffix'", "query'", "key'")]
            torch.exp2(prefix, out=buffers[0])
            torch.exp2(suffix, out=buffers[1])
            torch.mul(query, buffers[0], out=buffers[2])
            torch.mul(key, buffers[1], out=buffers[3])
            yield Corner(half, *buffers)
            self._join(half)
        self._finish()

    def _join(self, half: int) -> None:
        prefix, suffix = self._halved(self.prefix, half), self._halved(self.suffix, half)
        suffix[:, :, 0].add_(prefix[:, :, 1, -1:])
        prefix[:, :, 1].add_(prefix[:, :, 0, -1:])

    def _finish(self) -> None:
        self.prefix.exp2_()
        self.suffix.exp2_()
        self.joined = True

    def _total(self) -> Tensor:
        return self.prefix[:, -1, :, None]

    def _padded(self, name: str, x: Tensor) -> Tensor:
        if self.m == self.width:
            return x
        full = self.scratch(name, x.shape[0], self.width, x.shape[2])
        full[:, : self.m].copy_(x)
        full[:, self.m :].zero_()
        return full

    def _scaled(self, x: Tensor, factor: Tensor, name: str) -> Tensor:
        product = torch.mul(x, factor, out=self.scratch(name, *x.shape))
        return product[:, : self.m]

    def _new_scores(self) -> Tensor:
        """Return scores (n width width) that hold their diagonal only."""
        scores = self.scratch("scores", self.q.shape[0], self.width, self.width).zero_()
        product = torch.mul(self.q, self.k, out=self.scratch("from_past", *self.q.shape))
        scores.diagonal(dim1=1, dim2=2).copy_(product.sum(-1))
        return scores

    def _links(self, dy: Tensor) -> Tensor:
        """Return dY V^T (n width width): zero where the block was filled up."""
        links = torch.bmm(dy, self.v.transpose(1, 2), out=self.scratch("links", *dy.shape[:2], self.m))
        if self.m == self.width:
            return links
        full = self.scratch("links", dy.shape[0], self.width, self.width).zero_()
        full[:, : self.m, : self.m].copy_(links)
        return full

    def _corner_of(self, matrix: Tensor, half: int) -> Tensor:
        """View the corners (n blocks half half) of a level inside a matrix (n width width)."""
        n, blocks = matrix.shape[0], self.width // (2 * half)
        stride_n, stride_row, _ = matrix.stride()
        strides = (stride_n, 2 * half * (stride_row + 1), stride_row, 1)
        return matrix.as_strided((n, blocks, half, half), strides, matrix.storage_offset() + half * stride_row)

    def _place(self, corner: Corner, scores: Tensor) -> None:
        query, key = corner.query.flatten(0, 1), corner.key.flatten(0, 1)
        target = self._corner_of(scores, corner.half)
        if corner.half == 1:
            target.copy_((query * key).sum(-1).view_as(target))
        else:
            out = self.scratch("corner", query.shape[0], corner.half, corner.half)
            target.copy_(torch.bmm(query, key.transpose(1, 2), out=out).view_as(target))

    def _corner_gradient(self, corner: Corner, links: Tensor, dq: Tensor, dk: Tensor) -> None:
        query, key = corner.query.flatten(0, 1), corner.key.flatten(0, 1)
        gradient = self.scratch("corner", query.shape[0], corner.half, corner.half)
        gradient.copy_(self._corner_of(links, corner.half).flatten(0, 1))
        to_query = torch.bmm(gradient, key).view_as(corner.query)
        to_key = torch.bmm(gradient.transpose(1, 2), query).view_as(corner.key)
        self._halved(dq, corner.half)[:, :, 1].addcmul_(to_query, corner.query_decay)
        self._halved(dk, corner.half)[:, :, 0].addcmul_(to_key, corner.key_decay)
