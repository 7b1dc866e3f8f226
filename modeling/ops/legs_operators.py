r"""LegS in linear time: its matrix is a diagonal plus the lower triangle of an outer product.

    (A v)_n = n v_n - \sqrt{2n+1} \sum_{k<=n} \sqrt{2k+1} v_k

    (I - \lambda A) x = v:   S_n = \sum_{k<=n} \sqrt{2k+1} x_k = r_n ((1 - \lambda n) S_(n-1) + \sqrt{2n+1} v_n)
                             x_n = r_n (v_n - \lambda \sqrt{2n+1} S_(n-1)),   r_n = 1 / (1 + \lambda (n+1))

A is `legs(order)` in the scalings "orthonormal" and "paper", which share it (arXiv:2008.07669, appendix E).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .diagonal_recurrence import diagonal_recurrence


def legs_matvec(v: Tensor) -> Tensor:
    """v (*s n) -> A v (*s n), in O(n)."""
    n, root = _roots(v)
    return n * v - root * (root * v).cumsum(-1)


def legs_solve(v: Tensor, scale: float | Tensor) -> Tensor:
    """v (*s n), scale lambda a number or (*s) -> x (*s n) with (I - lambda A) x = v, in O(n).

    Differentiable once in both. Exact to rounding for lambda >= 0; raises ValueError for a negative number.
    """
    n, root = _roots(v)
    if not isinstance(scale, Tensor) and scale < 0:
        raise ValueError(f"scale must not be negative, not {scale}")
    scale = torch.as_tensor(scale, dtype=v.dtype, device=v.device).expand(v.shape[:-1])[..., None]
    ratio = 1 / (1 + scale * (n + 1))
    decay, value = (1 - scale * n) * ratio, ratio * root * v
    sums, _ = diagonal_recurrence(decay.reshape(-1, v.shape[-1], 1), value.reshape(-1, v.shape[-1], 1))
    before = F.pad(sums.reshape(v.shape), (1, -1))
    return ratio * (v - scale * root * before)


def legs_bilinear_step(c: Tensor, u: Tensor, count: float | Tensor, scaling: float = 2.0) -> Tensor:
    """One step of LegS by the bilinear rule in O(n): c (*s n) before, the sample u (*s) and its number from 1 -> c.

    B_n is sqrt(scaling (2n+1)): 2 for orthonormal functions, 1 for the paper's.
    """
    _, root = _roots(c)
    half = 0.5 / torch.as_tensor(count, dtype=c.dtype, device=c.device)
    right = c + half[..., None] * legs_matvec(c) + 2 * half[..., None] * scaling**0.5 * root * u[..., None]
    return legs_solve(right, half)


def _roots(v: Tensor) -> tuple[Tensor, Tensor]:
    n = torch.arange(v.shape[-1], dtype=v.dtype, device=v.device)
    return n, (2 * n + 1).sqrt()
