"""The recurrence matrices of a memory at given samples, kept between calls: they depend on nothing learned."""

from functools import lru_cache

import torch
from torch import Tensor

from .hippo import HippoMemory

# Samples whose matrices are made together; a memory of 64 coefficients takes 1 MiB of float32 for them.
SAMPLES = 64


def tables(memory: HippoMemory, method: str, count: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    r"""\bar A (*s n n) and \bar B (*s n) for the samples with the numbers `count` (*s), in dtype and place of `like`.

    `count` is None for a measure that is not scaled: (n n) and (n). Numbers below 1 (padding) count as 1.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(like) is not Tensor:  # pyright: ignore
        return _make(memory, method, None if count is None else count.clamp(min=1), like.dtype, like.device)
    if count is None:
        return _kept(memory, method, None, like.dtype, like.device)
    numbers, places = torch.unique(count.clamp(min=1), return_inverse=True)
    blocks, starts = torch.unique_consecutive((numbers - 1) // SAMPLES, return_counts=True)
    parts, first = [], 0
    for block, length in zip(blocks.tolist(), starts.tolist(), strict=True):
        inside = numbers[first : first + length] - 1 - block * SAMPLES
        first += length
        made = _kept(memory, method, block, like.dtype, like.device)
        parts.append(made if length == SAMPLES else tuple(part[inside] for part in made))
    decays, inputs = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return decays[places], inputs[places]


@lru_cache(maxsize=64)
def _kept(
    memory: HippoMemory, method: str, block: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The matrices of the samples 1 to SAMPLES after `block` times SAMPLES, or the only ones."""
    with torch.inference_mode(False), torch.no_grad():
        count = None if block is None else torch.arange(1, SAMPLES + 1) + block * SAMPLES
        return _make(memory, method, count, dtype, device)


def _make(
    memory: HippoMemory, method: str, count: Tensor | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.autocast(device.type, enabled=False):
        decay, value = memory.steps(count, method=method)
    # Copies: where both are views of one tensor, torch's scan refuses them.
    return decay.to(device, dtype, copy=True), value.to(device, dtype, copy=True)
