"""The orders in which a map of codes is read: Esser et al. 2021 (arXiv:2012.09841).

    order[t] = the place, row by row, of the code that is read at time t
    codes[order] = tokens        tokens[inverse(order)] = codes

On squares whose side is a power of two they are those of the authors' code; here every height and width has them.
"""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor


def row(height: int, width: int) -> list[int]:
    """Row by row, each from the left."""
    return list(range(height * width))


def alternate(height: int, width: int) -> list[int]:
    """Row by row, every second from the right, as an ox ploughs."""
    lines = [list(range(i * width, (i + 1) * width)) for i in range(height)]
    return [place for i, line in enumerate(lines) for place in (line[::-1] if i % 2 else line)]


def by_key(height: int, width: int, key) -> list[int]:
    return sorted(range(height * width), key=lambda place: key(*divmod(place, width)))


def z_curve(height: int, width: int) -> list[int]:
    """By Morton's number: the bits of row and column in turn, the row's before the column's."""
    bits = max(height, width).bit_length()
    return by_key(height, width, lambda i, j: [n >> bit & 1 for bit in reversed(range(bits)) for n in (i, j)])


def subsample(height: int, width: int) -> list[int]:
    """Coarse to fine: first every second place of every second row, and within that again so."""
    bits = max(height, width).bit_length()
    return by_key(height, width, lambda i, j: [n >> bit & 1 for bit in range(bits) for n in (i, j)])


def steps_of_a_spiral() -> Iterator[tuple[int, int]]:
    """Up, right, down, left, by 1, 1, 2, 2, 3, 3, ... places."""
    length = 1
    while True:
        yield from [(-1, 0)] * length + [(0, 1)] * length
        yield from [(1, 0)] * (length + 1) + [(0, -1)] * (length + 1)
        length += 2


def spiral_out(height: int, width: int) -> list[int]:
    """From the middle outwards, clockwise, up first; what lies outside of the map is passed over."""
    i, j = height // 2, (width - 1) // 2
    places = [i * width + j]
    for down, right in steps_of_a_spiral():
        if len(places) == height * width:
            return places
        i, j = i + down, j + right
        if 0 <= i < height and 0 <= j < width:
            places.append(i * width + j)
    return places


def spiral_in(height: int, width: int) -> list[int]:
    """The way of `spiral_out` back."""
    return spiral_out(height, width)[::-1]


def mersenne_twister(seed: int) -> random.Random:
    """The generator MT19937 as its authors seed it by one number: NumPy does so too, Python by itself does not."""
    state = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


def shuffled(height: int, width: int, seed: int) -> list[int]:
    """A random order: NumPy's `RandomState(seed).permutation`, which published models were trained with at seed 1."""
    places, generator = row(height, width), mersenne_twister(seed)
    for last in reversed(range(1, len(places))):
        mask = (1 << last.bit_length()) - 1
        while (chosen := generator.getrandbits(32) & mask) > last:
            pass
        places[last], places[chosen] = places[chosen], places[last]
    return places


ORDERS = {
    "row": row,
    "z_curve": z_curve,
    "spiral_in": spiral_in,
    "spiral_out": spiral_out,
    "alternate": alternate,
    "subsample": subsample,
}


@lru_cache(maxsize=64)
def list_places(name: str, height: int, width: int, seed: int) -> tuple[int, ...]:
    return tuple(shuffled(height, width, seed) if name == "random" else ORDERS[name](height, width))


def token_order(order: str | Sequence[int], height: int, width: int, seed: int = 1, device=None) -> Tensor:
    """The order of that name for a map of height x width, as int64 (height width); a sequence is the order itself.

    Raises ValueError for an unknown name, and for a sequence that is no order of this map.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a map of codes has at least one row and one column, not {height}x{width}.")
    if not isinstance(order, str):
        if sorted(order) != row(height, width):
            raise ValueError(f"this token order has {len(order)} places: it does not fit a map of {height}x{width}.")
        return torch.tensor(list(order), device=device)
    if order != "random" and order not in ORDERS:
        raise ValueError(f"unknown token order {order!r}; known: {', '.join((*ORDERS, 'random'))}.")
    return torch.tensor(list_places(order, height, width, seed), device=device)


def to_tokens(codes: Tensor, order: Tensor) -> Tensor:
    """codes (b h w) -> tokens (b hw) in that order."""
    return codes.flatten(1)[:, order]


def to_codes(tokens: Tensor, order: Tensor, height: int, width: int) -> Tensor:
    """tokens (b hw) in that order -> codes (b h w)."""
    return tokens[:, order.argsort()].unflatten(1, (height, width))
