"""Parallel prefix forms of ``h_t = a_t h_(t-1) + b_t``, in plain differentiable torch.

Both use that two steps compose into one, ``(a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2)``, so that only products of
decays are ever formed. Nothing is divided: ``a = 0`` is as good as any other decay, and ``|a| <= 1`` cannot overflow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_tracing_graph

CHUNK = 64
# A traced graph makes as many passes over the chunks as the longest sequence needs: 2**18 chunks, 16.7 million tokens.
PASSES = 18


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
    """All states by passes over chunks; in a traced graph their number is fixed, so that ``t`` may stay open.

    A doubling prefix runs inside all chunks at once, a second one over the chunks' totals. Arguments and result as in
    :func:`associative`.
    """
    length = b.shape[1]
    traced = torch.compiler.is_compiling() or is_tracing_graph()
    # Two chunks at least in a traced graph: a size that may be 1 makes torch.export bind the length to its example.
    count = length // CHUNK + 2 if traced else (length + CHUNK - 1) // CHUNK
    products, inside = _split(a.expand(a.shape[0], length, *a.shape[2:]), count), _split(b, count)
    shift = 1
    while shift < CHUNK:
        shifted = torch.addcmul(inside[:, :, shift:], products[:, :, shift:], inside[:, :, :-shift])
        inside = torch.cat([inside[:, :, :shift], shifted], 2)
        products = torch.cat([products[:, :, :shift], products[:, :, shift:] * products[:, :, :-shift]], 2)
        shift *= 2
    passes = PASSES if traced else (count - 1).bit_length()
    ends = _ends(products[:, :, -1], inside[:, :, -1], state, passes)
    before = torch.cat([state[:, None], ends], 1)[:, :count]
    h = torch.addcmul(inside, products, before[:, :, None]).flatten(1, 2)
    return h.index_select(1, torch.arange(length, device=h.device)) if traced else h[:, :length]


def _ends(total: Tensor, end: Tensor, state: Tensor, passes: int) -> Tensor:
    """The states after each chunk, from the chunks' products of decays and what they end with if they start from zero.

    Earlier chunks are fetched by index, where a slice would bring new sizes, and long traces, into an exported graph.
    """
    place = torch.arange(end.shape[1], device=end.device)
    steps = 2 ** torch.arange(passes, device=end.device)
    sources = place - steps[:, None]
    exists = (sources >= 0).to(end.dtype).reshape(*sources.shape, *[1] * (end.dim() - 2))
    first = (place == 0).to(end.dtype).reshape(-1, *[1] * (end.dim() - 2))
    end = torch.addcmul(end, total * first, state[:, None])
    for source, some in zip(sources.clamp(min=0).unbind(0), exists.unbind(0), strict=True):
        total = total * some
        end = torch.addcmul(end, total, end.index_select(1, source))
        total = total * total.index_select(1, source)
    return end


def _split(x: Tensor, count: int) -> Tensor:
    """``(batch, t, ...)`` padded with zeros at the end and cut into ``(batch, count, CHUNK, ...)``."""
    padding = [0, 0] * (x.dim() - 2) + [0, count * CHUNK - x.shape[1]]
    return F.pad(x, padding).unfold(1, CHUNK, CHUNK).movedim(-1, 2)
