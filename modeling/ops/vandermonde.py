r"""Sums of powers: the responses of diagonal systems, for all lags at once.

    vandermonde        K_k = Re(sum_n w_n z_n^k)             k = 0 .. length - 1
    weighted_past      x_n = sum_j z_n^(length-1-j) u_j

With k = iT + j a power factors, z^k = z^(iT) z^j: exponentials are taken for length/T + T exponents instead of length,
and a product of two real matrices does the rest. z is given by its logarithm in complex128, whose angle is reduced in
float64, so that float32 results stay exact over long texts.
"""

import math

import torch
from torch import Tensor

from .recording import count_blocks, first, into_blocks, is_recording


def powers(log_z: Tensor, exponents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """z^e, real and imaginary part in `dtype`, broadcast over log_z (...) complex128 and exponents (...) float64."""
    size = torch.exp2((log_z.real * math.log2(math.e) * exponents).to(dtype))
    turns = log_z.imag / (2 * math.pi) * exponents
    angle = ((turns - turns.round()) * (2 * math.pi)).to(dtype)
    return size * torch.cos(angle), size * torch.sin(angle)


def block_length(length: int) -> int:
    """T: about the root of the length, or a constant in a recorded graph."""
    return 64 if is_recording() else 2 ** round(math.log2(length) / 2)


def vandermonde(weights: Tensor, log_z: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """weights (m h n) and log_z (h n), complex128 -> K (m h length) in `dtype`, float32 or float64."""
    block = block_length(length)
    count = count_blocks(length, block)
    far = powers(log_z[..., None], steps(log_z, count) * block, dtype)  # (h n count)
    near = powers(log_z[..., None], steps(log_z, block), dtype)  # (h n block)
    real, imag = (part.to(dtype)[..., None] for part in (weights.real, weights.imag))
    left = torch.cat([real * far[0] - imag * far[1], -(real * far[1] + imag * far[0])], dim=-2)  # (m h 2n count)
    product = left.transpose(-1, -2) @ torch.cat(near, dim=-2)
    return first(product.flatten(-2), length)


def weighted_past(u: Tensor, log_z: Tensor) -> Tensor:
    """u (b h t) real and log_z (h n) complex128 -> x (b h n) complex, of u's precision."""
    block = block_length(u.shape[-1])
    blocks = into_blocks(u.flip(-1), block)
    far = powers(log_z[..., None], steps(log_z, blocks.shape[-2]) * block, u.dtype)
    near = torch.cat(powers(log_z[..., None], steps(log_z, block), u.dtype), dim=-2)  # (h 2n block)
    real, imag = (blocks @ near.transpose(-1, -2)).transpose(-1, -2).chunk(2, dim=-2)  # (b h n count)
    return torch.complex(
        (real * far[0] - imag * far[1]).sum(-1),
        (real * far[1] + imag * far[0]).sum(-1),
    )


def steps(like: Tensor, count: int) -> Tensor:
    """0, 1, ... count - 1 in float64."""
    return torch.arange(count, device=like.device, dtype=torch.float64)
