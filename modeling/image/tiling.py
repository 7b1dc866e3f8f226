"""Large images tile by tile, so that memory does not grow with an image beyond the image itself.

    y = sum_t w_t f(x_t) / sum_t w_t

for tiles t that overlap, with weights that fall from 1 to 0 across what two neighbours share. Where the value of f at
a place depends on places nearer than the margins that weigh nothing, y = f(x). Norms and attention look at a whole
tile: with them y is near f(x), not equal to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """One tile along one side: where it is read, where it is written, and its weights there."""

    read: slice
    written: slice
    weights: Tensor


def encode_tiles(encode: Map, pixels: Tensor, factor: int, size: int, tile: int | None, overlap: int | None) -> Tensor:
    """pixels (b c h w) -> encode(pixels), (b d h/f w/f), f = `factor`; a latent is of the tile that it is deepest in.

    Latents are not blended: the mean of two that stand for different codes may be nearest to a third. Arguments and
    errors as in `tile_in_cells`.
    """
    cells, shared = tile_in_cells(factor, size, tile, overlap)
    return map_tiles(encode, pixels, cells, shared, factor, 1, margin=0.5)


def decode_tiles(
    decode: Map, latents: Tensor, factor: int, size: int, tile: int | None, overlap: int | None
) -> Tensor:
    """latents (b d h w) -> decode(latents), (b c fh fw), f = `factor`, blended over the middle half of each overlap.

    Arguments and errors as in `tile_in_cells`.
    """
    cells, shared = tile_in_cells(factor, size, tile, overlap)
    return map_tiles(decode, latents, cells, shared, 1, factor, margin=0.25)


def tile_in_cells(factor: int, size: int, tile: int | None, overlap: int | None) -> tuple[int, int]:
    """Side and overlap of tiles in cells of `factor` pixels; both are given in pixels.

    tile: None is `size`, the images that a model was made for, or the next lower multiple of `factor`. overlap: what
    neighbours share at least; None is a quarter of the tile. Raises ValueError where `factor` does not divide one of
    them, for a tile below `factor`, and for an overlap below 0 or above half the tile.
    """
    tile = max(1, size // factor) * factor if tile is None else tile
    overlap = tile // (4 * factor) * factor if overlap is None else overlap
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % factor:
            raise ValueError(f"`{name}` must be a multiple of {factor}, the side of one code in pixels, not {value}.")
    if tile < factor:
        raise ValueError(f"`tile` must be at least {factor}, the side of one code in pixels, not {tile}.")
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"`overlap` must lie in 0..{tile // 2}, half of `tile`, not be {overlap}.")
    return tile // factor, overlap // factor


def map_tiles(function: Map, x: Tensor, tile: int, overlap: int, cell_in: int, cell_out: int, margin: float) -> Tensor:
    """x (b c h w) -> function(x), (b d h' w'), from tiles; function(x) itself where one tile holds x.

    tile, overlap: in cells, of `cell_in` places of x and `cell_out` of the result. margin: the part of an overlap, at
    each tile's border, that weighs nothing, from 0 to 0.5; weights fall over what is left.
    """
    sides = [side // cell_in for side in x.shape[2:]]
    if max(sides) <= tile:
        return function(x)
    down, across = (parts_of(side, tile, overlap, cell_in, cell_out, margin) for side in sides)
    total, dtype = None, x.dtype
    for row in down:
        for column in across:
            y = function(x[..., row.read, column.read])
            if total is None:
                shape = (*y.shape[:2], *(side * cell_out for side in sides))
                total, dtype = y.new_zeros(shape, dtype=torch.promote_types(y.dtype, torch.float32)), y.dtype
            window = row.weights.to(total)[:, None] * column.weights.to(total)
            total[..., row.written, column.written] += y * window
    assert total is not None
    return total.to(dtype)


def parts_of(side: int, tile: int, overlap: int, cell_in: int, cell_out: int, margin: float) -> list[Part]:
    """The tiles along a side, in cells; their weights (tile * cell_out) add up to 1 at each place."""
    starts = starts_of(side, tile, overlap)
    length = min(tile, side) * cell_out
    windows = torch.zeros(len(starts), side * cell_out, dtype=torch.float64)
    for i, start in enumerate(starts):
        before = starts[i - 1] + tile - start if i else 0
        after = start + tile - starts[i + 1] if i + 1 < len(starts) else 0
        place = slice(start * cell_out, start * cell_out + length)
        rising = ramp(length, before * cell_out, margin) if before else 1
        falling = ramp(length, after * cell_out, margin).flip(0) if after else 1
        windows[i, place] = rising * falling * torch.ones(length, dtype=torch.float64)
    windows /= windows.sum(0)
    written = [slice(start * cell_out, start * cell_out + length) for start in starts]
    return [
        Part(slice(start * cell_in, (start + tile) * cell_in), place, window[place])
        for start, place, window in zip(starts, written, windows, strict=True)
    ]


def starts_of(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: as few as cover the side and share `overlap`, at distances as even as whole numbers allow."""
    if side <= tile:
        return [0]
    steps = -(-(side - tile) // (tile - overlap))
    return [step * (side - tile) // steps for step in range(steps + 1)]


def ramp(length: int, shared: int, margin: float) -> Tensor:
    """(length) weights from 0 to 1 around the middle of the first `shared` places, without `margin` of these."""
    from_middle = torch.arange(length, dtype=torch.float64) + 0.5 - shared / 2
    return (from_middle / max(shared * (1 - 2 * margin), 1) + 0.5).clamp(0, 1)
