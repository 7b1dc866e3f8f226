"""Cache-sized blocks of long sequences: reading, writing and scratch memory of the loops in ``matrix_fast``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .matrix_chunkwise import CHUNK

# Heads that one matrix product should be given at least, so that its cost outweighs the call's.
HEADS = 16


def spans(length: int) -> list[tuple[int, int]]:
    """Return the blocks' (start, stop) along time; only the last may be shorter than CHUNK."""
    return [(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def row_groups(batch: int, heads: int) -> Iterator[slice]:
    """Yield slices of the batch that are small enough for their blocks to stay in the cache."""
    size = max(1, HEADS // heads)
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


class Reader:
    """Blocks (rows*h m ...) of a tensor (rows h t ...) in the working dtype; copied only where strides or dtype ask."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        self.x, self.flat, self.buffer = x, None, None
        rows, heads = x.shape[:2]
        if x.dtype == dtype and (rows == 1 or x.stride(0) == heads * x.stride(1)):
            self.flat = x[0] if rows == 1 else x.view(rows * heads, *x.shape[2:])
        else:
            self.buffer = x.new_empty(rows, heads, min(CHUNK, x.shape[2]), *x.shape[3:], dtype=dtype)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return tokens ``start`` to ``stop``; valid until the next call."""
        if self.flat is not None:
            return self.flat[:, start:stop]
        block = self.buffer[:, :, : stop - start]
        block.copy_(self.x[:, :, start:stop])
        return block.flatten(0, 1)


def write(block: Tensor, target: Tensor, start: int, stop: int) -> None:
    """Store a block (rows*h m ...) as tokens ``start`` to ``stop`` of ``target`` (rows h t ...)."""
    target[:, :, start:stop].copy_(block.view(target.shape[0], target.shape[1], stop - start, *block.shape[2:]))


def empty_like_mixers(x: Tensor) -> Tensor:
    """Return an empty (b h t d) that lies in memory as (b t h d): what mixers hand over and take back without a copy."""
    b, h, t, d = x.shape
    return x.new_empty(b, t, h, d).transpose(1, 2)


class Scratch:
    """Named contiguous buffers, allocated once per shape and used again for every block."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device, self.buffers = dtype, device, {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return the buffer of that name and shape; its contents are whatever was left there."""
        key = (name, shape)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return self.buffers[key]
