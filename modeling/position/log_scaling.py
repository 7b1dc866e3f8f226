"""Queries that keep the entropy of attention over more keys: Su 2021, kexue.fm/archives/8823 ("softmax_plus").

softmax(log n / log 512  q k^T / sqrt(d)),   n = the number of keys that the query sees

It holds the entropy down, not constant: for random keys on the unit sphere the mean still grows with n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding


def count_seen(context: Context) -> Tensor:
    """The number of keys that each query sees, (b t) or (1 t) int64.

    Causal: its position + 1. Otherwise the real tokens of its own segment, or what a ready 4-D mask shows.
    """
    positions, mask, segments = context.positions, context.mask, context.segments
    if context.causal:
        return positions + 1
    if segments is not None:
        real = torch.ones_like(segments) if mask is None else mask.long()
        return torch.zeros_like(segments).scatter_add(1, segments, real).gather(1, segments)
    if mask is not None:
        return mask.sum(dim=1, keepdim=True).expand_as(mask)
    shown = context.visibility
    if isinstance(shown, Tensor) and shown.dim() == 4:
        shown = shown if shown.dtype == torch.bool else shown > torch.finfo(shown.dtype).min / 2
        return shown[:, 0].sum(dim=-1)
    return torch.full_like(positions, positions.shape[1])


def log_scale(count: Tensor, base: float = 512.0, floor: int | None = None) -> Tensor:
    """log n / log base in float32, n (any shape) not below `floor`; 0 for n = 1."""
    return count.clamp(min=1 if floor is None else floor).to(torch.float32).log() / math.log(base)


class LogScaling(PositionEncoding):
    """`inner`, with queries multiplied by log n / log base before the scores and before its own `bias`.

    floor (int): n is not taken below it; bert4keras has 16 since 0.11.5, and published models were trained with none.
    Raises ValueError for a base or floor that gives no positive factor.
    """

    def __init__(self, inner: PositionEncoding, base: float = 512.0, floor: int | None = None) -> None:
        super().__init__()
        if base <= 1 or (floor is not None and floor < 1):
            raise ValueError(f"log scaling takes a base above 1 and a floor of at least 1, not {base} and {floor}.")
        self.inner, self.base, self.floor = inner, float(base), floor
        self.terms, self.causal_only, self.bidirectional_only = (
            inner.terms,
            inner.causal_only,
            inner.bidirectional_only,
        )

    def rotate(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        q, k = self.inner.rotate(q, k, context)
        factor = context.once(
            ("log scaling", self.base, self.floor), lambda: log_scale(count_seen(context), self.base, self.floor)
        )
        return (q * factor[:, None, :, None]).to(q.dtype), k

    def turn(self, v: Tensor, context: Context) -> Tensor:
        return self.inner.turn(v, context)

    def scale(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return self.inner.scale(q, k, context)

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        return self.inner.bias(q, k, context)

    def read(self, weights: Tensor, context: Context) -> Tensor | None:
        return self.inner.read(weights, context)

    @property
    def biased(self) -> bool:
        return self.inner.biased

    @property
    def reads(self) -> bool:
        return self.inner.reads

    @property
    def sees_keys(self) -> bool:
        return self.inner.sees_keys
