"""Orthogonal functions by their recurrences, and the nodes and weights that integrate them exactly. float64."""

import math

import torch
from torch import Tensor

from .hippo_measures import check_order, fourier_coordinates, fourier_numbers, laguerre_log_norm


def legendre(x: Tensor, order: int) -> Tensor:
    """x (p) in [-1, 1] -> P_0 ... P_(order-1) at x, (order p); P_n(1) = 1."""
    rows = [torch.ones_like(x), x]
    for n in range(1, check_order(order) - 1):
        rows.append(((2 * n + 1) * x * rows[n] - n * rows[n - 1]) / (n + 1))
    return torch.stack(rows[:order])


def orthonormal_legendre(x: Tensor, order: int) -> Tensor:
    """sqrt((2n+1)/2) P_n at x (p) in [-1, 1], (order p): orthonormal over [-1, 1]."""
    n = torch.arange(order, dtype=x.dtype, device=x.device)
    return ((2 * n + 1) / 2).sqrt()[:, None] * legendre(x, order)


def laguerre(s: Tensor, order: int, alpha: float = 0.0, fade: float = 0.5) -> Tensor:
    """L_n^alpha(s) e^(-fade s), divided by the norm of L_n^alpha under s^alpha e^-s: s (p) >= 0 -> (order p).

    Each row is built with the exponential in it, so that nothing overflows where the product is small.
    """
    rows = [torch.exp(-fade * s)]
    if check_order(order) > 1:
        rows.append((1 + alpha - s) * rows[0])
    for n in range(1, order - 1):
        rows.append(((2 * n + 1 + alpha - s) * rows[n] - (n + alpha) * rows[n - 1]) / (n + 1))
    norm = laguerre_log_norm(torch.arange(order, dtype=s.dtype, device=s.device), alpha).exp()
    return torch.stack(rows) / norm[:, None]


def fourier(s: Tensor, order: int, real: bool = False) -> Tensor:
    """e^(2 i pi n s) for n of `fourier_numbers`, (order p), orthonormal over [0, 1]; where `real`, in the layout of
    `fout`: 1, sqrt2 cos(2 pi s), sqrt2 sin(2 pi s) ..."""
    if not real:
        return torch.exp(2j * math.pi * fourier_numbers(order).to(s)[:, None] * s)
    n = torch.arange((order + 1) // 2, dtype=s.dtype, device=s.device)[:, None]
    scale = (1 + (n > 0)).to(s).sqrt()
    waves = torch.stack((scale * torch.cos(2 * math.pi * n * s), scale * torch.sin(2 * math.pi * n * s)), dim=1)
    return waves.flatten(0, 1)[fourier_coordinates(order)]


def legendre_nodes(points: int, start: float = -1.0, end: float = 1.0) -> tuple[Tensor, Tensor]:
    """Nodes and weights (points) of Gauss and Legendre: exact over [start, end] for polynomials below 2 points."""
    n = torch.arange(1, points, dtype=torch.float64)
    beside = n / (4 * n * n - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    half = (end - start) / 2
    return start + half * (nodes + 1), 2 * half * vectors[0] ** 2


def laguerre_nodes(points: int) -> tuple[Tensor, Tensor]:
    """Nodes s and weights (points) for integrals over [0, inf) of e^-s times a polynomial below 2 points.

    The weights belong to the whole function, e^-s included. Raises ValueError above 300 points, where the outermost
    nodes leave the range of float64.
    """
    if not 1 <= points <= 300:
        raise ValueError(f"points must be 1 to 300, not {points}")
    n = torch.arange(points, dtype=torch.float64)
    nodes = torch.linalg.eigvalsh(torch.diag(2 * n + 1) + torch.diag(n[1:], 1) + torch.diag(n[1:], -1))
    last = laguerre(nodes, points + 2)[points + 1]
    return nodes, nodes / ((points + 1) * last) ** 2
