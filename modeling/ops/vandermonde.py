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


def table(first_one: Tensor, log_z: Tensor, step: int, count: int, dtype: torch.dtype) -> Tensor:
    """first_one z^(step k) for k = 0 .. count - 1, (... h n count), complex of the precision of `dtype`.

    first_one (... h n) and log_z (h n), complex128. The table doubles by a factor that stays complex128, so that an
    entry is rounded as often as its index has bits.
    """
    narrow = torch.complex64 if dtype == torch.float32 else torch.complex128
    if is_recording():
        parts = powers(log_z[..., None], steps(log_z, count) * step, torch.float64)
        return (first_one[..., None] * torch.complex(*parts)).to(narrow)
    made, factor = first_one[..., None].to(narrow), torch.exp(log_z * step)[..., None]
    while made.shape[-1] < count:
        made, factor = torch.cat([made, made * factor.to(narrow)], dim=-1), factor * factor
    return made[..., :count]


def vandermonde(weights: Tensor, log_z: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """weights (m h n) and log_z (h n), complex128 -> K (m h length) in `dtype`, float32 or float64."""
    block = block_length(length)
    far = table(weights, log_z, block, count_blocks(length, block), dtype)  # (m h n count)
    near = table(torch.ones_like(log_z), log_z, 1, block, dtype)  # (h n block)
    left = torch.cat([far.real, -far.imag], dim=-2).transpose(-1, -2)
    return first((left @ real_rows(near)).flatten(-2), length)


def weighted_past(u: Tensor, log_z: Tensor) -> Tensor:
    """u (b h t) real and log_z (h n) complex128 -> x (b h n) complex, of u's precision."""
    block = block_length(u.shape[-1])
    blocks = into_blocks(u.flip(-1), block)
    one = torch.ones_like(log_z)
    near = real_rows(table(one, log_z, 1, block, u.dtype))  # (h 2n block)
    far = table(one, log_z, block, blocks.shape[-2], u.dtype)  # (h n count)
    real, imag = (blocks @ near.transpose(-1, -2)).transpose(-1, -2).chunk(2, dim=-2)  # (b h n count)
    return torch.complex(
        (real * far.real - imag * far.imag).sum(-1),
        (real * far.imag + imag * far.real).sum(-1),
    )


def real_rows(x: Tensor) -> Tensor:
    """(h n k) complex -> (h 2n k): real parts, then imaginary parts."""
    return torch.cat([x.real, x.imag], dim=-2)


def steps(like: Tensor, count: int) -> Tensor:
    """0, 1, ... count - 1 in float64."""
    return torch.arange(count, device=like.device, dtype=torch.float64)
