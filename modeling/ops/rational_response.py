r"""The response of a rational transfer function, tap by tap.

    H(z) = (b_0 + b_1 z + ... ) / (1 + a_1 z + ... + a_d z^d) = \sum_k K_k z^k

The Fourier transform of the quotient, sampled at m points of a circle of radius r, gives \sum_j K_(k+jm) r^(k+jm):
what lies beyond the m-th tap wraps around, damped by r^m. On the unit circle it would not be damped, and the taps of a
slow system would be wrong. Dividing by r^k returns K_k, and magnifies rounding errors by as much. With m = 4 length
both stay below 1e-10 in float64; one step of refinement, with what K (1 + a_1 z + ...) lacks of b, squares that.
"""

import math

import torch
from torch import Tensor

DAMPING = math.log(1e-14)


def rational_response(numerator: Tensor, denominator: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """b (... p) and a_1 .. a_d (... d), float64 -> K (... length) in `dtype`, float32 or float64.

    Time: O((length + d) log(length + d)). The first taps are those of the recurrence
    K_k = b_k - a_1 K_(k-1) - ... - a_d K_(k-d), also of an unstable system as long as they do not grow beyond 1e4.
    """
    size = 4 * (length + denominator.shape[-1] + numerator.shape[-1])
    rate = DAMPING / size
    below = torch.cat((torch.ones_like(denominator[..., :1]), denominator), dim=-1)
    divisor = _transform(below, rate, size)
    taps = _divided(numerator, divisor, rate, size, length)
    if dtype == torch.float64:
        with torch.no_grad():
            product = torch.fft.irfft(torch.fft.rfft(taps, size) * torch.fft.rfft(below, size), size)[..., :length]
            rest = torch.nn.functional.pad(numerator, (0, length))[..., :length] - product
            refinement = _divided(rest, divisor, rate, size, length)
        taps = taps + refinement
    return taps.to(dtype)


def _divided(numerator: Tensor, divisor: Tensor, rate: float, size: int, length: int) -> Tensor:
    taps = torch.fft.irfft(_transform(numerator, rate, size) / divisor, size)[..., :length]
    return taps * torch.exp(-rate * torch.arange(length, device=taps.device, dtype=taps.dtype))


def _transform(x: Tensor, rate: float, size: int) -> Tensor:
    damped = x * torch.exp(rate * torch.arange(x.shape[-1], device=x.device, dtype=x.dtype))
    return torch.fft.rfft(damped, size)
