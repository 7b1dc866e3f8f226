r"""State matrices of HiPPO: Gu et al. 2020, Recurrent Memory with Optimal Polynomial Projections (arXiv:2008.07669).

A memory keeps the coefficients c of a signal's past in a basis; they obey a linear differential equation,

    c'(t) = A c + B u                  over a window that slides, or that fades      legt, fout, lagt
    c'(t) = (A c + B u) / t            over the whole past, ever coarser             legs, fous

Every function returns A (n n) and B (n), float64 and, for complex Fourier bases, complex128.
"""

import math

import torch
from torch import Tensor

LEGENDRE_SCALINGS = ("orthonormal", "paper", "monomial")


def legt(order: int, window: float = 1.0, scaling: str = "orthonormal") -> tuple[Tensor, Tensor]:
    r"""Legendre polynomials over the last `window` units of time.

        A_nk = -1/w \sqrt{(2n+1)(2k+1)} {1 for k < n, (-1)^{n-k} for k >= n}      B_n = 1/w \sqrt{2(2n+1)}

    `scaling`: "orthonormal" (the equations above); "paper" halves B's square; "monomial" keeps the coefficients of
    the P_n themselves, A_nk = -(2n+1)/w {...}, B_n = (2n+1)/w: the Legendre Memory Unit up to the signs (-1)^n.
    The S4 code's LegT is this one with window 2. Raises ValueError for an unknown scaling or a window not above 0.
    """
    require_window(window)
    n = torch.arange(check_order(order), dtype=torch.float64)
    # Not as a power: a compiled graph of torch reads (-1) ** n as -(1 ** n).
    signs = torch.where(n[:, None] > n, 1.0, 1 - 2 * ((n[:, None] - n) % 2))
    left, right, scale = _legendre_scales(n, scaling)
    return -left[:, None] * right * signs / window, scale / window


def legs(order: int, scaling: str = "orthonormal") -> tuple[Tensor, Tensor]:
    r"""Legendre polynomials over the whole past, scaled to its length: c' = (A c + B u) / t.

        A_nk = -{\sqrt{(2n+1)(2k+1)} for k < n, n+1 for k = n, 0 for k > n}      B_n = \sqrt{2(2n+1)}

    `scaling`: "orthonormal" (the equations above); "paper", B_n = \sqrt{2n+1}, which is also what S4 uses;
    "monomial" keeps the coefficients of the P_n themselves, A_nk = -(2n+1) below the diagonal, B_n = 2n+1.
    Raises ValueError for an unknown scaling.
    """
    n = torch.arange(check_order(order), dtype=torch.float64)
    left, right, scale = _legendre_scales(n, scaling)
    return -torch.tril(left[:, None] * right, -1) - torch.diag(n + 1), scale


def lagt(order: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""Laguerre polynomials under a measure that fades exponentially into the past, with s = T - t:

        c_n(T) = \int_0^\infty u(T - s) L_n^\alpha(s) e^{-(1+\beta)s/2} ds / \sqrt{\Gamma(n+\alpha+1)/n!}

    With alpha = beta = 0, A = I/2 - tril(1) and B = 1. Raises ValueError unless alpha > -1 and beta > -1.
    """
    if alpha <= -1 or beta <= -1:
        raise ValueError(f"alpha and beta must be above -1, not {alpha} and {beta}")
    n = torch.arange(check_order(order), dtype=torch.float64)
    log_norm = laguerre_log_norm(n, alpha)
    below = torch.tril((log_norm - log_norm[:, None]).exp(), -1)
    log_start = torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1) - math.lgamma(alpha + 1)
    return -below - (1 + beta) / 2 * torch.eye(order, dtype=torch.float64), (log_start - log_norm).exp()


def fout(order: int, window: float = 1.0, corrected: bool = True, real: bool = True) -> tuple[Tensor, Tensor]:
    r"""Fourier series over the last `window` units of time.

        A_nk = (2 i \pi n \delta_nk - f) / w      B_n = f / w      n as in `fourier_numbers`

    f = 2 where `corrected`, else 1. A Fourier series takes at the seam the mean of both ends, (u(T) + u(T-w)) / 2;
    f = 1 reads it as u(T-w), and its error does not fall with the order.

    Where `real`, the basis is 1, \sqrt2 cos(2 \pi s), \sqrt2 sin(2 \pi s), \sqrt2 cos(4 \pi s) ... with s = (T-t) / w.
    An even order has a second coordinate, the sine of frequency 0, that stays zero: cosine n stands at 2n, its sine
    at 2n+1, as in the S4 code, whose `fout` is this one with window 2. Raises ValueError for a window not above 0.
    """
    require_window(window)
    factor = 2.0 if corrected else 1.0
    if not real:
        n = fourier_numbers(order).to(torch.complex128)
        matrix = torch.diag(2j * math.pi * n) - factor
        return matrix / window, torch.full_like(n, factor / window)
    even = check_order(order) + order % 2
    now = torch.zeros(even, dtype=torch.float64)
    now[0], now[2::2] = 1.0, math.sqrt(2)
    turn = torch.zeros(even - 1, dtype=torch.float64)
    turn[::2] = 2 * math.pi * torch.arange(even // 2, dtype=torch.float64)
    matrix = torch.diag(turn, -1) - torch.diag(turn, 1) - factor * now[:, None] * now
    kept = fourier_coordinates(order)
    return matrix[kept][:, kept] / window, factor * now[kept] / window


def fous(order: int) -> tuple[Tensor, Tensor]:
    r"""Fourier series over the whole past, scaled to its length: c' = (A c + B u) / t, complex.

    A_nk = -n / (n - k)      A_nn = i \pi n - 1      B = 1      n as in `fourier_numbers`
    """
    n = fourier_numbers(order)
    gap = n[:, None] - n
    matrix = torch.where(gap == 0, 0.0, -n[:, None] / gap.where(gap != 0, 1.0)).to(torch.complex128)
    return matrix + torch.diag(1j * math.pi * n - 1), torch.ones_like(matrix[0])


def fourier_numbers(order: int) -> Tensor:
    """The frequencies of a complex basis (n) float64, from -(order // 2) upwards: symmetric where the order is odd."""
    return torch.arange(check_order(order), dtype=torch.float64) - order // 2


def fourier_coordinates(order: int) -> Tensor:
    """Which of cos 0, sin 0, cos 1, sin 1 ... a real basis keeps: an odd order leaves out sin 0, which is zero."""
    return torch.tensor([place for place in range(order + order % 2) if place != 1 or order % 2 == 0])


def laguerre_log_norm(n: Tensor, alpha: float) -> Tensor:
    r"""log \sqrt{\Gamma(n+\alpha+1) / n!}: half the logarithm of the integral of s^\alpha e^{-s} L_n^\alpha(s)^2."""
    return (torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1)) / 2


def check_order(order: int) -> int:
    """Return `order`; raise ValueError unless it is at least 1."""
    if order < 1:
        raise ValueError(f"order must be at least 1, not {order}")
    return order


def require_window(window: float) -> None:
    if not window > 0:
        raise ValueError(f"window must be above 0, not {window}")


def _legendre_scales(n: Tensor, scaling: str) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right factors of A, and B, for the functions sqrt((2n+1)/2) P_n, or as `scaling` says."""
    root = (2 * n + 1).sqrt()
    if scaling not in LEGENDRE_SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(LEGENDRE_SCALINGS)}, not {scaling!r}")
    if scaling == "monomial":
        return root**2, torch.ones_like(n), root**2
    return root, root, root if scaling == "paper" else math.sqrt(2) * root
