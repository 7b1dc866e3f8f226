"""Rotary positions whose frequencies depend on the length of the text: NTK-aware "dynamic" scaling and LongRoPE.

score_ij = q_i^T R_(j-i)(theta(n_i)) k_j,   n_i = i + 1 in a causal model, else the length of the sequence

The frequencies are the query's own, not those of the call: a text may be cut into calls at will, and nothing that
follows changes what precedes it. Keys are cached as they are and turned when they are read.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding, distances, known_keys
from .rotary import Angles, Rotary, make_angles

CHUNK = 2**22  # numbers held at a time by `bias`


def lengths(context: Context) -> Tensor:
    """The length (b t) or (1 t) that each query belongs to."""
    if context.causal:
        return context.positions + 1
    mask, segments = context.mask, context.segments
    reached = context.positions + 1
    if mask is not None:
        reached = reached * mask
    if segments is None:
        return reached.amax(dim=1, keepdim=True).expand_as(reached)
    reached = reached.expand_as(segments)
    return torch.zeros_like(segments).scatter_reduce(1, segments, reached, "amax").gather(1, segments)


class RotaryByLength(PositionEncoding):
    """`inner` with the frequencies `by_length(n)` (b t rotated/2) of lengths n (b t); its own are a short text's.

    A step of decoding costs a rotation of all keys; a causal call of several tokens beyond the trained length costs
    that much for each of them, and where it is traced the memory of all of them at once. Raises ValueError for an
    encoding that learns its frequencies, scales keys or turns values.
    """

    def __init__(self, inner: Rotary, by_length: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if inner.sees_keys or inner.values or list(inner.parameters()):
            raise ValueError(
                f"frequencies that depend on the length take fixed rotary positions of queries and keys alone, not "
                f"{type(inner).__name__} with values={inner.values}."
            )
        self.inner, self.by_length = inner, by_length

    def scale(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        queries, keys = context.once(("rotary by length", dtype), lambda: self.angles(dtype, context))
        return self.inner.turned(q, queries), self.inner.turned(k, keys)

    def angles(self, dtype: torch.dtype, context: Context) -> tuple[Angles, Angles]:
        """Those of the queries and of all keys, by the frequencies of short texts where `bias` adds the rest."""
        if self.differs(context):
            frequencies = self.inner.frequencies(context.positions.device)
        else:
            frequencies = self.by_length(lengths(context))[:, None]
        places = (context.positions, known_keys(context))
        queries, keys = (make_angles(place, frequencies, dtype, self.inner.factor) for place in places)
        return queries, keys

    def differs(self, context: Context) -> bool:
        """Whether the queries of one row may want keys turned by different frequencies."""
        return context.causal and context.positions.shape[1] > 1

    def drift(self, context: Context) -> Tensor | None:
        """theta(n) - theta (b t rotated/2) of each query, or None where it is known to be zero."""
        if not self.differs(context):
            return None
        usual = self.inner.frequencies(context.positions.device)
        drift = self.by_length(lengths(context)) - usual
        return drift if torch.compiler.is_compiling() or bool(drift.any()) else None

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        """Re(conj(q_i) k_j (e^(i (j-i) drift_i) - 1)) summed over pairs: what theta(n_i) in theta's place adds."""
        drift = context.once("rotary drift", lambda: self.drift(context))
        if drift is None:
            return None
        wide = torch.promote_types(q.dtype, torch.float32)
        (q_one, q_two), (k_one, k_two) = (self.inner.split(x[..., : self.inner.rotated].to(wide)) for x in (q, k))
        parts = []
        for place in chunks(q.shape[2], k_one.numel()):
            cos, sin = shifts(-distances(context)[:, place], drift[:, place], wide)
            one, two = q_one[:, :, place, None], q_two[:, :, place, None]  # (b h c 1 r)
            real, imaginary = one * cos + two * sin, two * cos - one * sin
            parts.append(
                torch.einsum("bhcsr,bhsr->bhcs", real, k_one) + torch.einsum("bhcsr,bhsr->bhcs", imaginary, k_two)
            )
        return torch.cat(parts, dim=2) * self.inner.dim**-0.5


def chunks(queries: int, size: int) -> list[slice]:
    """The queries in pieces that hold at most CHUNK numbers, `size` for each; all at once while tracing."""
    if torch.compiler.is_compiling():
        return [slice(None)]
    step = max(1, CHUNK // max(size, 1))
    return [slice(begin, begin + step) for begin in range(0, queries, step)]


def shifts(ahead: Tensor, drift: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos - 1 and sin (b 1 c s r) of keys `ahead` (b c s) of queries that drift (b c r)."""
    angles = torch.remainder(ahead.to(drift.dtype)[..., None] * drift[:, :, None], 2 * torch.pi).to(dtype)[:, None]
    return angles.cos() - 1, angles.sin()
