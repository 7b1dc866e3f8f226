"""Linear systems with a dense real matrix for each channel, over many tokens: s_t = A s_(t-1) + b u_t.

No loop over tokens: powers of A by squaring, and blocks of tokens joined two by two. In a recorded graph, where the
number of blocks is a symbol, each block is instead raised to its own power, bit by bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .recording import count_blocks, first, into_blocks, is_recording

BLOCK = 64
# Bits of the longest count that a recorded graph knows of.
RECORDED_BITS = 24


def apply_power(matrix: Tensor, x: Tensor, count: Tensor, longest: int) -> Tensor:
    """A^count x: matrix (h n n), x (b h m n), count (b m) or (1 m) integers, none above `longest`."""
    power = matrix
    for bit in range(RECORDED_BITS if is_recording() else longest.bit_length()):
        power = matrix if bit == 0 else power @ power
        chosen = ((count >> bit) & 1).bool()[:, None, :, None]
        x = torch.where(chosen, x @ power.transpose(-1, -2), x)
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
    x = into_blocks(u.flip(-1), BLOCK) @ made.transpose(-1, -2)  # (b h count n), the last tokens' block first
    if is_recording():
        return apply_power(power, x, torch.arange(x.shape[2], device=u.device)[None], x.shape[2]).sum(2)
    while x.shape[2] > 1:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2))
        x = x[:, :, ::2] + x[:, :, 1::2] @ power.transpose(-1, -2)
        power = power @ power
    return x[:, :, 0]


def respond(matrix: Tensor, c: Tensor, state: Tensor, length: int) -> Tensor:
    """y_k = c A^(k+1) s for k < length: c (h n), state (b h n) -> (b h length)."""
    transposed = matrix.transpose(-1, -2)
    rows, power = columns(transposed, (transposed @ c[..., None])[..., 0])
    starts, count = state[:, :, None], count_blocks(length, BLOCK)
    if is_recording():
        every = torch.arange(count, device=state.device)[None]
        starts = apply_power(power.transpose(-1, -2), starts.expand(-1, -1, count, -1), every, count)
    while starts.shape[2] < count and not is_recording():
        starts = torch.cat([starts, starts @ power], dim=2)
        power = power @ power
    return first((starts[:, :, :count] @ rows).flatten(-2), length)
