"""Where the matrices of state-space layers begin.

HiPPO matrices as a normal one minus low rank, A = V (Lambda - P P^*) V^*: Gu et al. 2021 (arXiv:2111.00396), theorem
1. Diagonals: Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models
(arXiv:2206.11893).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.hippo_measures import fout, legs, legt

# Published layers clip the input weights of HiPPO at this size.
LARGEST_INPUT = 2.0
FUNCTIONS = {
    "exp": torch.exp,
    "softplus": F.softplus,
    "relu": lambda x: F.relu(x) + 1e-4,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}
INVERSES = {
    "exp": torch.log,
    "softplus": lambda y: y + torch.log(-torch.expm1(-y)),
    "relu": lambda y: y,
    "sigmoid": torch.logit,
    "none": lambda y: y,
}


def hippo_parts(init: str, size: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Poles (n), P (rank n) and B (n), complex128, n = size / 2: one of each conjugate pair, the fastest first."""
    n = torch.arange(size, dtype=torch.float64)
    if init == "legs":
        (matrix, b), low = legs(size, "paper"), (n + 0.5).sqrt()[None]
    elif init == "legt":
        (matrix, b), root = legt(size, 2.0, "paper"), (n + 0.5).sqrt()
        low = torch.stack([root * (n % 2), root * (1 - n % 2)])
    else:
        matrix, b = fout(size, 2.0)
        low = b[None]
    low = F.pad(low, (0, 0, 0, rank - len(low)))
    normal = matrix + low.T @ low
    turn, vectors = torch.linalg.eigh(-1j * normal)
    turn, vectors = turn[: size // 2], vectors[:, : size // 2].clone()
    if init == "fout":  # frequency 0 is a pair of zeros, between which eigh cannot choose
        vectors[:, -1] = 0
        vectors[0, -1], vectors[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    b, low = vectors.conj().T @ b.to(vectors.dtype), low.to(vectors.dtype) @ vectors.conj()
    phase = torch.where(b.abs() > 1e-12, -1j * b.conj() / b.abs().clamp(min=1e-12), 1.0)
    return normal.diagonal().mean() + 1j * turn, low * phase, b * phase


def clipped(b: Tensor) -> Tensor:
    return b * (LARGEST_INPUT / b.abs().clamp(min=LARGEST_INPUT))


def diagonal_poles(init: str, count: int, real: bool) -> Tensor:
    """Poles (count) complex128, with imaginary parts of one sign."""
    n, size = torch.arange(count, dtype=torch.float64), 2 * count
    if init == "real":
        return -(1 + n) + 0j
    if init == "legs":
        return -0.5 + 1j * hippo_parts("legs", size, 1)[0].imag
    turn = {
        "lin": math.pi * n,
        "inv": size / math.pi * (size / (2 * n + 1) - 1),
        "inv2": size / math.pi * (size / (n + 1) - 1),
        "quad": (2 * n + 1) ** 2 / math.pi,
    }[init]
    return -0.5 - 1j * (0 if real else 1) * turn
