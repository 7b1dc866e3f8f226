r"""The loops of the gated memory cell's fast form, forward and backward: eight small operations a token.

    h = h' + g (a - h'),   g = \sigma(z), a = tanh(.)          f = W_f h + b          c = \bar A c' + \bar B f

With H and C the gradients that reach h and c by all ways, and F = \bar B^T C,   H += W_f^T F,

    dz = H (a - h') g (1 - g)             da = H g (1 - a^2)
    H' = H (1 - g) + W_h^T [dz, da]       C' = \bar A^T C + W_c^T [dz, da]

Gates and candidates are computed again from the kept states, for a block of tokens in one product, and so are the
gradients of the weights: what remains in the loop is the recurrence itself. Kept are h and c of each token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .hippo import HippoMemory
from .hippo_tables import tables

BLOCK = 64


class _Flags(NamedTuple):
    """Per token, time first: kept (t b 1 1) and real (t b 1 1) as factors, or None; count (t b) or None."""

    count: Tensor | None
    kept: Tensor | None
    real: Tensor | None


def _flags(count: Tensor | None, kept: Tensor | None, real: Tensor | None, like: Tensor) -> _Flags:
    """Time first; counts that are the same in all rows become those of one row."""
    if count is not None:
        count = count.T[:, :1] if bool((count == count[:1]).all()) else count.T
        count = count[:, 0] if count.shape[1] == 1 else count
    return _Flags(count, *(None if part is None else part.T[:, :, None, None].to(like) for part in (kept, real)))


def _matrices(block: slice, count: Tensor | None, memory: HippoMemory, method: str, like: Tensor) -> list[Any]:
    r"""(\bar A^T, \bar B) for each token of a block: (n n) and (n) where all rows share them, else with b before."""
    if not memory.scaled or count is None:
        decay, value = tables(memory, method, None, like)
        return [(decay.mT, value)] * (block.stop - block.start)
    decays, values = tables(memory, method, count[block], like)
    return list(zip(decays.mT.unbind(0), values[..., None, :].unbind(0), strict=True))


def _times(c: Tensor, matrix: Tensor) -> Tensor:
    """c (b m n) times a matrix for all rows (n n) or for each (b n n)."""
    return torch.bmm(c, matrix) if matrix.dim() == 3 else torch.mm(c.flatten(0, 1), matrix).view_as(c)


def forward(
    x: Tensor,
    recurrent: Tensor,
    read: Tensor,
    write: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    count: Tensor | None,
    kept: Tensor | None,
    real: Tensor | None,
    measure: str,
    order: int,
    window: float,
    method: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the states after the last token, and, if told to `keep` them, h (t b d) and c (t b m n) of every token."""
    memory, length = HippoMemory(measure, order, window), x.shape[1]
    flags = _flags(count, kept, real, x)
    rows = x.transpose(0, 1).contiguous()
    hidden = x.new_empty(length, *h.shape)
    kept_memory = x.new_empty(length if keep else 0, *c.shape)
    # Copies even of a single row: a product with one column rounds by where its weights happen to lie in memory.
    copied = (part.T.clone(memory_format=torch.contiguous_format) for part in (recurrent, read, write))
    weights = (*copied, bias)
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, length, BLOCK):
            block = slice(start, min(start + BLOCK, length))
            made = _matrices(block, flags.count, memory, method, x)
            for t, matrices in zip(range(block.start, block.stop), made, strict=True):
                out = kept_memory[t] if keep else torch.empty_like(c)
                h, c = _token(rows[t], weights, h, c, matrices, flags, t, hidden[t], out)
    y = hidden.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return y, h.clone(), c.clone(), hidden if keep else hidden[:0].clone(), kept_memory


def _token(
    x: Tensor,
    weights: tuple[Tensor, ...],
    h: Tensor,
    c: Tensor,
    matrices: tuple[Tensor, Tensor],
    flags: _Flags,
    t: int,
    new_h: Tensor,
    new_c: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write h and c after the token t into `new_h` and `new_c`."""
    recurrent, read, write, bias = weights
    if flags.kept is not None:
        h, c = h * flags.kept[t, :, :, 0], c * flags.kept[t]
    gates = torch.addmm(x, h, recurrent).addmm_(c.flatten(1), read)
    d = h.shape[1]
    gate, new = gates[:, :d].sigmoid_(), gates[:, d:].tanh_()
    if flags.real is not None:
        gate = gate.mul_(flags.real[t, :, :, 0])
    torch.lerp(h, new, gate, out=new_h)
    told = torch.addmm(bias, new_h, write)
    torch.mul(told[..., None], matrices[1], out=new_c)
    if matrices[0].dim() == 3:
        new_c.baddbmm_(c, matrices[0])
    else:
        new_c.flatten(0, 1).addmm_(c.flatten(0, 1), matrices[0])
    if flags.real is not None:
        torch.lerp(c, new_c.clone(), flags.real[t], out=new_c)
    return new_h, new_c


def backward(
    grad: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    x: Tensor,
    recurrent: Tensor,
    read: Tensor,
    write: Tensor,
    h: Tensor,
    c: Tensor,
    count: Tensor | None,
    kept: Tensor | None,
    real: Tensor | None,
    hidden: Tensor,
    contents: Tensor,
    measure: str,
    order: int,
    window: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, the four weights and the initial h and c."""
    memory, length = HippoMemory(measure, order, window), x.shape[1]
    flags = _flags(count, kept, real, x)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    totals = [torch.zeros_like(part) for part in (recurrent, read, write)] + [x.new_zeros(write.shape[0])]
    reaching = grad_h, grad_c
    with torch.autocast(x.device.type, enabled=False):
        for start in reversed(range(0, length, BLOCK)):
            block = slice(start, min(start + BLOCK, length))
            before = _before(block, flags, (h, c), (hidden, contents))
            gates, slopes = _slopes(x[:, block].transpose(0, 1), before, recurrent, read, flags, block)
            made = _matrices(block, flags.count, memory, method, x)
            above = grad[:, block].transpose(0, 1).contiguous()
            reaching, told = _run_back(reaching, above, gates, slopes, made, (recurrent, read, write), flags, block)
            grad_x[:, block] = slopes.flatten(2).transpose(0, 1)
            _add_gradients(totals, slopes.flatten(2).flatten(0, 1).T, before, told.flatten(0, 1), hidden[block])
    return grad_x, totals[0], totals[1], totals[2], totals[3], reaching[0].clone(), reaching[1].clone()


def _add_gradients(
    totals: list[Tensor], sides: Tensor, before: tuple[Tensor, Tensor], told: Tensor, hidden: Tensor
) -> None:
    """The share of a block in the gradients of the weights: sides (2d t*b), told (t*b m), hidden (t b d)."""
    totals[0].addmm_(sides, before[0].flatten(0, 1))
    totals[1].addmm_(sides, before[1].flatten(0, 1).flatten(1))
    totals[2].addmm_(told.T, hidden.flatten(0, 1))
    totals[3].add_(told.sum(0))


def _before(
    block: slice, flags: _Flags, start: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """h and c as each token of a block found them."""
    first = [
        part[None] if block.start == 0 else all_of_it[block.start - 1 : block.start]
        for part, all_of_it in zip(start, states, strict=True)
    ]
    h, c = (torch.cat((a, b[block.start : block.stop - 1])) for a, b in zip(first, states, strict=True))
    if flags.kept is None:
        return h, c
    return h * flags.kept[block][..., 0], c * flags.kept[block]


def _slopes(
    x: Tensor, before: tuple[Tensor, Tensor], recurrent: Tensor, read: Tensor, flags: _Flags, block: slice
) -> tuple[Tensor, Tensor]:
    """1 - g (t b d), and what H is multiplied by to give dz and da, (t b 2 d)."""
    h, c = before
    z, a = (x + h @ recurrent.T + c.flatten(2) @ read.T).chunk(2, dim=-1)
    gate, new = torch.sigmoid(z), torch.tanh(a)
    slopes = torch.stack(((new - h) * gate * (1 - gate), gate * (1 - new * new)), dim=2)
    if flags.real is None:
        return 1 - gate, slopes
    return 1 - gate * flags.real[block][..., 0], slopes * flags.real[block]


def _run_back(
    reaching: tuple[Tensor, Tensor],
    from_above: Tensor,
    stay: Tensor,
    slopes: Tensor,
    matrices: list[Any],
    weights: tuple[Tensor, Tensor, Tensor],
    flags: _Flags,
    block: slice,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What reaches the states before the block, and F (t b m). `slopes` becomes [dz, da], `from_above` is consumed."""
    (recurrent, read, write), (h, c) = weights, reaching
    told = from_above.new_empty(len(matrices), *c.shape[:2])
    kept, real = (None if part is None else part[block] for part in (flags.kept, flags.real))
    for t in reversed(range(len(matrices))):
        decay, value = matrices[t]
        above = from_above[t].add_(h)
        torch.sum(c * value, -1, out=told[t])
        passed = _times(c, decay.mT)
        if real is not None:
            told[t].mul_(real[t, :, :, 0])
            passed = torch.where(real[t] > 0, passed, c)
        above.addmm_(told[t], write)
        share = slopes[t].mul_(above[:, None]).flatten(1)
        h = torch.mul(above, stay[t]).addmm_(share, recurrent)
        c = passed.flatten(1).addmm_(share, read).view_as(c)
        if kept is not None:
            h, c = h * kept[t, :, :, 0], c * kept[t]
    return (h, c), told
