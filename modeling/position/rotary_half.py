"""Rotary positions with pairs (i, i + d/2), the layout of GPT-NeoX and LLaMA.

y_i       = x_i cos(m theta_i) - x_(i+d/2) sin(m theta_i)
y_(i+d/2) = x_(i+d/2) cos(m theta_i) + x_i sin(m theta_i),     theta_i = base^(-2i/d)

The rotation of the paper after a permutation of channels: weights of one layout become those of the other by permuting
the rows of W_q and W_k (`pairs_to_halves`, `halves_to_pairs`), and mixing the two up is silently wrong.
"""

import torch
from torch import Tensor

from .rotary import Angles, Rotary


def split_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second channel of each pair of x (b h t d)."""
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def rotate_halves(x: Tensor, angles: Angles) -> Tensor:
    """Turn channels i and i + d/2 of x (b h t d) by angles (b 1 t d/2).

    Sums go into the product's own memory: what is joined of two halves would be written twice.
    """
    first, second = split_halves(x)
    turned = x * torch.cat((angles.cos, angles.cos), dim=-1)
    left, right = split_halves(turned)
    left.addcmul_(second, angles.sin, value=-1)
    right.addcmul_(first, angles.sin)
    return turned


class RotaryHalf(Rotary):
    """`Rotary` in the half-split layout; of the `rotated` first channels the halves belong together."""

    rotates = staticmethod(rotate_halves)
    split = staticmethod(split_halves)


def head_order(dim: int, rotated: int | None, to_halves: bool) -> Tensor:
    """Which channel of a head (d) stands at each place of the other layout."""
    rotated = dim if rotated is None else rotated
    if rotated % 2 or not 0 < rotated <= dim:
        raise ValueError(f"of {dim} channels an even number from 2 to {dim} can be turned, not {rotated}.")
    places = torch.arange(rotated)
    order = places.view(-1, 2).T if to_halves else places.view(2, -1).T
    return torch.cat((order.flatten(), torch.arange(rotated, dim)))


def reorder(rows: Tensor, heads: int, rotated: int | None, to_halves: bool) -> Tensor:
    if rows.shape[0] % heads:
        raise ValueError(f"{rows.shape[0]} rows cannot be split into {heads} heads of equal size.")
    dim = rows.shape[0] // heads
    order = head_order(dim, rotated, to_halves).to(rows.device)
    return rows.unflatten(0, (heads, dim))[:, order].flatten(0, 1)


def pairs_to_halves(rows: Tensor, heads: int, rotated: int | None = None) -> Tensor:
    """W (h*d n) or its bias (h*d) of the queries or keys of "rotary", for "rotary_half".

    rotated: the first channels of each head that are turned, by default all. Raises ValueError for sizes that do not
    fit. The other way is `halves_to_pairs`.
    """
    return reorder(rows, heads, rotated, to_halves=True)


def halves_to_pairs(rows: Tensor, heads: int, rotated: int | None = None) -> Tensor:
    """W (h*d n) or its bias (h*d) of the queries or keys of "rotary_half", for "rotary"."""
    return reorder(rows, heads, rotated, to_halves=False)
