r"""Cauchy kernels on the circle: sums over conjugate pairs of poles, in real arithmetic and without singular node.

With w_k = exp(-2 \pi i k / L), g = (1 - w) / (1 + w) = i tan(\pi k / L) and c, s = cos, sin(\pi k / L),

    \sum_n v_n / (g - \lambda_n) + conj. = c \sum_n N_n / D_n
    N_n = i s 2Re(v_n) - c 2Re(v_n \lambda_n^*)      D_n = c^2 |\lambda_n|^2 - s^2 - 2 i s c Re(\lambda_n)

as in Gu et al. 2021, section C.3 (arXiv:2111.00396), multiplied through by c^2: at w = -1, where g is infinite,
c is 0. On a smaller circle, |w| = exp(-damping), the angles are complex, and the equations stay.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recording import is_recording


def nodes(length: int, device: torch.device, damping: float = 0.0) -> tuple[Tensor, Tensor]:
    """c and s (length // 2 + 1): cosine and sine of half the angles of the upper half circle of radius exp(-damping).

    float64 on the unit circle, else complex128.
    """
    angle = torch.arange(length // 2 + 1, device=device, dtype=torch.float64) * math.pi / length
    if damping:
        angle = torch.complex(angle, torch.full_like(angle, -damping / 2))
    return torch.cos(angle), torch.sin(angle)


def cauchy(v: Tensor, poles: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """The sums N / D over n, (m h k): v (m h n) and poles (h n), complex128; c and s (k), the nodes.

    Not in float32: poles without damping are damped by the low-rank part alone, and of the sum's digits few remain.
    """
    weights = torch.cat([-2 * (v * poles.conj()).real, 2 * v.real]).transpose(0, 1)  # (h 2m n)
    sums = (_plain if is_recording() else _Sums.apply)(weights, poles.abs(), poles.real, c, s)
    even, odd = torch.complex(sums[0], -sums[1]).chunk(2, dim=1)
    return (c * even + 1j * s * odd).transpose(0, 1)


def _inverse(size: Tensor, decay: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """p and q (h n k), 1 / D = p - i q, for |poles| and their real parts (h n)."""
    if c.is_complex():
        rows = torch.stack([size * size, decay, torch.ones_like(size)], dim=-1)
        terms = torch.stack([c * c, -2j * s * c, -s * s])
        real, imag = rows @ terms.real, rows @ terms.imag
    else:
        size = size[..., None]
        real, imag = (size * c - s) * (size * c + s), decay[..., None] * (-2 * s * c)
    scale = (real * real + imag * imag).reciprocal_()
    return real.mul(scale), imag.mul(scale)


def _plain(weights: Tensor, size: Tensor, decay: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    real, imag = _inverse(size, decay, c, s)
    return weights @ real, weights @ imag


class _Sums(torch.autograd.Function):
    """`_plain` over blocks of nodes, computed again in the backward pass: no number is kept for a pole and a node.

    With E = 1 / D,  dE = -E^2 dD.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, size: Tensor, decay: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights, size, decay, c, s)
        parts = [_plain(weights, size, decay, *block) for block in _blocks(size, c, s)]
        real, imag = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        return real, imag

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_real: Tensor, grad_imag: Tensor) -> tuple[Tensor | None, ...]:
        weights, size, decay, c, s = ctx.saved_tensors
        grads = torch.zeros_like(weights), torch.zeros_like(size), torch.zeros_like(decay)
        for block_real, block_imag, cosine, sine in _blocks(size, grad_real, grad_imag, c, s):
            p, q = _inverse(size, decay, cosine, sine)
            grads[0].add_(block_real @ p.transpose(-1, -2)).add_(block_imag @ q.transpose(-1, -2))
            into_p, into_q = weights.transpose(-1, -2) @ block_real, weights.transpose(-1, -2) @ block_imag
            even, odd = p * p - q * q, 2 * p * q
            into_real, into_imag = into_p * even + into_q * odd, into_p * odd - into_q * even
            for grad, slope in (grads[1], cosine * cosine + 0j), (grads[2], -2j * sine * cosine):
                grad.sub_(into_real @ slope.real).sub_(into_imag @ slope.imag)
        return grads[0], grads[1] * 2 * size, grads[2], None, None


def _blocks(size: Tensor, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The parts cut along their nodes, so that numbers for each pole and node fill about a megabyte."""
    nodes_each = max(8, 2**17 // max(size.numel(), 1))
    return zip(*(part.split(nodes_each, dim=-1) for part in parts), strict=True)
