"""Parallel prefix forms of ``h_t = a_t h_(t-1) + b_t``, in plain differentiable torch.

Both use that two steps compose into one, ``(a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2)``, so that only products of
decays are ever formed. Nothing is divided: ``a = 0`` is as good as any other decay, and ``|a| <= 1`` cannot overflow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Four levels reach 64 * 128**3 = 134 million tokens. Their number is fixed, so that a graph serves every length.
CHUNKS = (64, 128, 128, 128)


def associative(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """All states by a work-efficient parallel prefix of ``2 log2 t`` passes.

    Args:
        a: ``(batch, t, *channels)`` or any shape that broadcasts to it, time and batch included.
        b: ``(batch, t, *channels)``.
        state: ``(batch, *channels)``, the state before the first token.

    Returns:
        ``h`` of the shape of ``b``.
    """
    first = b[:, :1] + a[:, :1] * state[:, None]
    return _prefix(a, torch.cat([first, b[:, 1:]], 1))


def _prefix(a: Tensor, b: Tensor) -> Tensor:
    length = b.shape[1]
    if length == 1:
        return b
    pairs = length // 2
    early, late, later = _every_other(a, pairs, (length - 1) // 2)
    odd = _prefix(late * early, torch.addcmul(b[:, 1::2], late, b[:, 0 : 2 * pairs : 2]))
    even = torch.cat([b[:, :1], torch.addcmul(b[:, 2::2], later, odd[:, : (length - 1) // 2])], 1)
    woven = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return woven if length % 2 == 0 else torch.cat([woven, even[:, pairs:]], 1)


def _every_other(a: Tensor, pairs: int, rest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The decays of tokens 0, 2, .. and 1, 3, .. of the pairs, and of 2, 4, ..; one constant in time is all three."""
    if a.shape[1] == 1:
        return a, a, a
    return a[:, 0 : 2 * pairs : 2], a[:, 1::2], a[:, 2::2][:, :rest]


def chunkwise(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """All states by a fixed number of levels of chunks, so that ``torch.export`` may leave ``t`` open.

    Inside a chunk a doubling prefix runs on all chunks at once; the chunks' totals are the tokens of the next level.
    Arguments and result as in :func:`associative`; ``t`` may not exceed the product of ``CHUNKS``.
    """
    a = a.expand(a.shape[0], b.shape[1], *a.shape[2:])
    first = b[:, :1] + a[:, :1] * state[:, None]
    return _levels(a, torch.cat([first, b[:, 1:]], 1), CHUNKS)


def _levels(a: Tensor, b: Tensor, chunks: tuple[int, ...]) -> Tensor:
    length, chunk = b.shape[1], chunks[0]
    count = (length + chunk - 1) // chunk
    products, inside = _split(a, length, count, chunk), _split(b, length, count, chunk)
    shift = 1
    while shift < chunk:
        inside = torch.cat(
            [inside[:, :, :shift], torch.addcmul(inside[:, :, shift:], products[:, :, shift:], inside[:, :, :-shift])],
            2,
        )
        products = torch.cat([products[:, :, :shift], products[:, :, shift:] * products[:, :, :-shift]], 2)
        shift *= 2
    if len(chunks) > 1:
        ends = _levels(products[:, :, -1], inside[:, :, -1], chunks[1:])
        before = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        inside = torch.addcmul(inside, products, before[:, :, None])
    return inside.flatten(1, 2)[:, :length]


def _split(x: Tensor, length: int, count: int, chunk: int) -> Tensor:
    """``(batch, t, ...)`` padded with zeros at the end and cut into ``(batch, count, chunk, ...)``."""
    padding = [0, 0] * (x.dim() - 2) + [0, count * chunk - length]
    return F.pad(x, padding).unflatten(1, (count, chunk))
