"""Cache-sized blocks of long sequences: reading, writing and scratch memory of the loops in ``matrix_fast``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .matrix_chunkwise import CHUNK

# Heads that one matrix product should be given at least, so that its cost outweighs the call's.
HEADS = 16
# Shorter blocks cost less arithmetic and more calls: the better bargain where a product has MANY heads.
SHORT, MANY = 32, 8


def block_size(batch: int, heads: int, keep: bool, decay: Tensor | None) -> int:
    """Return how many tokens a block of the forward has: fewer where none are kept and decays do not vary."""
    varies = decay is not None and decay.dim() > 1
    return CHUNK if keep or varies or min(batch * heads, HEADS) < MANY else SHORT


def block_count(length: int, size: int = CHUNK) -> int:
    """Return into how many blocks of ``size`` tokens a sequence is cut; only the last may be shorter."""
    return (length + size - 1) // size


def row_groups(batch: int, heads: int) -> Iterator[slice]:
    """Yield slices of the batch that are small enough for their blocks to stay in the cache."""
    size = max(1, HEADS // heads)
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


class Reader:
    """The blocks (rows*h m ...) of a tensor (rows h t ...) in the working dtype; copied only where that must be."""

    def __init__(self, x: Tensor, dtype: torch.dtype, size: int = CHUNK) -> None:
        rows, heads = x.shape[:2]
        self.buffer = None
        if x.dtype == dtype and (rows == 1 or x.stride(0) == heads * x.stride(1)):
            flat = x[0] if rows == 1 else x.view(rows * heads, *x.shape[2:])
            self.blocks = flat.split(size, 1)
        else:
            self.blocks = x.split(size, 2)
            self.buffer = torch.empty_like(self.blocks[0], dtype=dtype, memory_format=torch.contiguous_format)

    def __call__(self, number: int) -> Tensor:
        """Return one block; valid until the next call."""
        block = self.blocks[number]
        if self.buffer is None:
            return block
        return self.buffer[:, :, : block.shape[2]].copy_(block).flatten(0, 1)


class Writer:
    """The blocks of a tensor (rows h t ...) that are to be filled."""

    def __init__(self, x: Tensor, size: int = CHUNK) -> None:
        self.blocks = x[0].split(size, 1) if x.shape[0] == 1 else x.split(size, 2)

    def __call__(self, number: int, block: Tensor) -> None:
        """Store a block (rows*h m ...)."""
        target = self.blocks[number]
        target.copy_(block if target.dim() == block.dim() else block.view(target.shape))


def empty_like_mixers(x: Tensor) -> Tensor:
    """Return an empty (b h t d) that lies in memory as (b t h d), which mixers flatten without a copy."""
    b, h, t, d = x.shape
    return x.new_empty(b, t, h, d).transpose(1, 2)


def decay_gradient(shares: Tensor, start: Tensor) -> Tensor:
    """Return dL/dg_t = start - sum_(i<t) shares_i for shares (n m ..) and what the state at the start adds (n ..).

    ``shares`` is dL/dc for the sums c of the decays g. Summing from the end would be the same but for rounding: what
    the last token adds to the state is not decayed by the block, and would drown the gradient of a strong decay.
    """
    gradient = torch.empty_like(shares)
    gradient[:, 0].copy_(start)
    torch.sub(start[:, None], shares[:, :-1].cumsum(1), out=gradient[:, 1:])
    return gradient


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
