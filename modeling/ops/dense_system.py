"""Linear systems with a dense real matrix for each channel, over many tokens: s_t = A s_(t-1) + b u_t.

No loop over tokens: powers of A by squaring, and blocks of tokens joined two by two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_tracing_graph

BLOCK = 64
# Where a graph is recorded the length is unknown: so many doublings reach any.
MOST_DOUBLINGS = 24


def doublings(count: int) -> int:
    """How often 1 must be doubled to reach `count`."""
    if torch.compiler.is_compiling() or is_tracing_graph():
        return MOST_DOUBLINGS
    return max(count - 1, 0).bit_length()


def apply_power(matrix: Tensor, x: Tensor, count: Tensor, longest: int) -> Tensor:
    """A^count x: matrix (h n n), x (b h n), count (b) integers, none above `longest`."""
    power = matrix
    for bit in range(doublings(longest + 1)):
        power = matrix if bit == 0 else power @ power
        moved = (power @ x[..., None])[..., 0]
        x = torch.where(((count >> bit) & 1).bool()[:, None, None], moved, x)
    return x


def columns(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """b, A b, ... A^(BLOCK-1) b as columns (h n BLOCK), and A^BLOCK."""
    made, power = b[..., None], matrix
    while made.shape[-1] < BLOCK:
        made = torch.cat([made, power @ made], dim=-1)
        power = power @ power
    return made, power


def absorb(matrix: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """The state (b h n) after u (b h t) from an empty one: sum_j A^(t-1-j) b u_j."""
    made, power = columns(matrix, b)
    count = (u.shape[-1] + BLOCK - 1) // BLOCK
    blocks = F.pad(u, (count * BLOCK - u.shape[-1], 0)).unflatten(-1, (count, BLOCK))
    x = blocks @ made.flip(-1).transpose(-1, -2)  # (b h count n)
    for _ in range(doublings(count)):
        x = F.pad(x, (0, 0, x.shape[2] % 2, 0))
        x = x[:, :, ::2] @ power.transpose(-1, -2) + x[:, :, 1::2]
        power = power @ power
    return x[:, :, 0]


def respond(matrix: Tensor, c: Tensor, state: Tensor, length: int) -> Tensor:
    """y_k = c A^(k+1) s for k < length: c (h n), state (b h n) -> (b h length)."""
    transposed = matrix.transpose(-1, -2)
    rows, power = columns(transposed, (transposed @ c[..., None])[..., 0])
    count = (length + BLOCK - 1) // BLOCK
    starts, reached = state[:, :, None], 1
    while reached < count:
        starts = torch.cat([starts, starts @ power], dim=2)
        power, reached = power @ power, 2 * reached
    return (starts[:, :, :count] @ rows).flatten(-2)[..., :length]
