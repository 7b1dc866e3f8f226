"""Whether a graph is being recorded, in which lengths may be symbols: no loop may then depend on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_tracing_graph


def is_recording() -> bool:
    """Return whether torch.compile, torch.export or a tracer records the operations."""
    return torch.compiler.is_compiling() or is_tracing_graph()


def count_blocks(length: int, block: int) -> int:
    """How many blocks of `block` tokens hold `length`; more than one in a graph, since one would be a constant."""
    return length // block + 2 if is_recording() else (length + block - 1) // block


def first(x: Tensor, length: int) -> Tensor:
    """x (... t) up to `length`; in a graph by index, since a slice lays conditions upon a length that is a symbol."""
    return x.index_select(-1, torch.arange(length, device=x.device)) if is_recording() else x[..., :length]


def into_blocks(x: Tensor, block: int) -> Tensor:
    """x (... t) -> (... count block), with zeros after its end."""
    length = x.shape[-1]
    count = count_blocks(length, block)
    if not is_recording():
        return F.pad(x, (0, count * block - length)).unflatten(-1, (count, block))
    positions = torch.arange(count, device=x.device)[:, None] * block + torch.arange(block, device=x.device)
    return x[..., positions.clamp(max=length - 1)] * (positions < length)
