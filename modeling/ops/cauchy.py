r"""Cauchy kernels on the circle: sums over conjugate pairs of poles, in real arithmetic and without singular node.

With w_k = exp(-2 \pi i k / L), g = (1 - w) / (1 + w) = i tan(\pi k / L) and c, s = cos, sin(\pi k / L),

    \sum_n v_n / (g - \lambda_n) + conj. = c \sum_n N_n / D_n
    N_n = i s 2Re(v_n) - c 2Re(v_n \lambda_n^*)      D_n = c^2 |\lambda_n|^2 - s^2 - 2 i s c Re(\lambda_n)

as in Gu et al. 2021, section C.3 (arXiv:2111.00396), multiplied through by c^2: at w = -1, where g is infinite,
c is 0.
"""

import math

import torch
from torch import Tensor


def nodes(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """c and s (length // 2 + 1) float64: cosine and sine of half the angles of the upper half circle."""
    angle = torch.arange(length // 2 + 1, device=device, dtype=torch.float64) * math.pi / length
    return torch.cos(angle), torch.sin(angle)


def cauchy(v: Tensor, poles: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """The sums N / D over n, (m h k): v (m h n) and poles (h n), complex128; c and s (k) float64, the nodes.

    Not in float32: poles without damping are damped by the low-rank part alone, and of the sum's digits few remain.
    """
    size, decay = poles.abs()[..., None], poles.real[..., None]
    real = (size * c - s) * (size * c + s)
    imag = decay * (-2 * s * c)
    scale = (real * real + imag * imag).reciprocal()
    weights = torch.cat([-2 * (v * poles.conj()).real, 2 * v.real]).transpose(0, 1)  # (h 2m n)
    # 1 / D is the first part minus i the second.
    even_real, odd_real = (weights @ (real * scale)).chunk(2, dim=1)
    even_imag, odd_imag = (weights @ (imag * scale)).chunk(2, dim=1)
    return torch.complex(c * even_real + s * odd_imag, s * odd_real - c * even_imag).transpose(0, 1)
