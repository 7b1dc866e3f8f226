r"""Sums of powers: the responses of diagonal systems, for all lags at once.

    vandermonde        K_k = Re(sum_n w_n z_n^k)             k = 0 .. length - 1
    weighted_past      x_n = sum_j z_n^(length-1-j) u_j

With k = iT + j a power factors, z^k = z^(iT) z^j: length/T + T powers are made instead of length, and a product of
two real matrices does the rest. z is given by its logarithm in complex128, and its squares stay complex128, so that
float32 results stay exact over long texts.
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


def squares(log_z: Tensor, count: int) -> list[Tensor]:
    """z, z^2, z^4, ...: `count` powers of z = e^log_z, complex128."""
    made = [torch.polar(torch.exp(log_z.real), log_z.imag)]
    while len(made) < count:
        made.append(made[-1] * made[-1])
    return made


def row_of_powers(first_one: Tensor, factors: list[Tensor]) -> Tensor:
    """first_one z^k for k = 0 .. 2^len(factors) - 1 along the last but one dimension; factors z, z^2, z^4, ..."""
    made = first_one[..., None, :]
    for factor in factors:
        made = torch.cat([made, made * factor[..., None, :]], dim=-2)
    return made


def table(first_one: Tensor, factors: list[Tensor], narrow: torch.dtype) -> Tensor:
    """first_one z^k for k = 0 .. 2^len(factors) - 1, (... h k n): first_one (... h n), factors z, z^2, z^4, ... (h n).

    Factors are complex128, the result has the dtype `narrow`: it is the product of two short rows, so that an entry is
    rounded three times, whatever its index.
    """
    half = (len(factors) + 1) // 2
    low, high = factors[:half], factors[half:]
    near, far = row_of_powers(first_one, low), row_of_powers(torch.ones_like(first_one), high)
    return (far.to(narrow)[..., :, None, :] * near.to(narrow)[..., None, :, :]).flatten(-3, -2)


def tables(weights: Tensor, log_z: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(z^*)^j for j < T, (h T n), and weights z^(iT) for i < length/T, (... h count n), complex.

    One of the two is conjugate since Re(a b) is the dot product of the pairs a and b^*.
    """
    block, narrow = block_length(length), torch.complex64 if dtype == torch.float32 else torch.complex128
    count, one = count_blocks(length, block), torch.ones_like(log_z)
    if is_recording():
        near = torch.complex(*powers(conjugate(log_z)[:, None], steps(log_z, block)[:, None], torch.float64))
        far = torch.complex(*powers(log_z[:, None], steps(log_z, count)[:, None] * block, torch.float64))
        return near.to(narrow), (weights[..., None, :] * far).to(narrow)
    bits, more = block.bit_length() - 1, (count - 1).bit_length()
    factors = squares(log_z, bits + more)
    near = table(one, [conjugate(factor) for factor in factors[:bits]], narrow)
    return near, table(weights, factors[bits:], narrow)[..., :count, :]


def vandermonde(weights: Tensor, log_z: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """weights (m h n) and log_z (h n), complex128 -> K (m h length) in `dtype`, float32 or float64."""
    near, far = tables(weights, log_z, length, dtype)
    return first((in_pairs(far) @ in_pairs(near).transpose(-1, -2)).flatten(-2), length)


def weighted_past(u: Tensor, log_z: Tensor) -> Tensor:
    """u (b h t) real and log_z (h n) complex128 -> x (b h n) complex, of u's precision."""
    near, far = tables(torch.ones_like(log_z), log_z, u.shape[-1], u.dtype)
    blocks = into_blocks(u.flip(-1), near.shape[-2]) @ in_pairs(near)  # (b h count 2n)
    return (torch.view_as_complex(blocks.unflatten(-1, (-1, 2))).conj() * far).sum(-2)


def conjugate(x: Tensor) -> Tensor:
    """x^*, written out."""
    return torch.complex(x.real, -x.imag)


def in_pairs(x: Tensor) -> Tensor:
    """(... n) complex -> (... 2n): real and imaginary parts in turn, without a copy."""
    return torch.view_as_real(x).flatten(-2)


def steps(like: Tensor, count: int) -> Tensor:
    """0, 1, ... count - 1 in float64."""
    return torch.arange(count, device=like.device, dtype=torch.float64)
