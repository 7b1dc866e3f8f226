r"""The response of a rational transfer function, tap by tap.

    H(z) = (b_0 + b_1 z + ... ) / (1 + a_1 z + ... + a_d z^d) = \sum_k K_k z^k

The Fourier transform of the quotient, sampled at m points of a circle of radius r, gives \sum_j K_(k+jm) r^(k+jm): what
lies beyond the m-th tap wraps around, damped by r^m. On the unit circle it would not be damped, and the taps of a slow
system would be wrong. Dividing by r^k returns K_k, and magnifies rounding errors by as much. With m = 4 length and
r^m = 1e-13 both stay below 1e-12 in float64.
"""

import math

import torch
from torch import Tensor

DAMPING = math.log(1e-13)


def rational_response(numerator: Tensor, denominator: Tensor, length: int) -> Tensor:
    """b (... p) and a_1 .. a_d (... d), float64 -> K (... length).

    Time: O((length + d) log(length + d)). Stable or not, the first taps are those of the recurrence
    K_k = b_k - a_1 K_(k-1) - ... - a_d K_(k-d), as long as the largest of them is not far above 1e13.
    """
    size = 4 * (length + denominator.shape[-1] + numerator.shape[-1])
    rate = DAMPING / size
    below = torch.cat((torch.ones_like(denominator[..., :1]), denominator), dim=-1)
    quotient = _transform(numerator, rate, size) / _transform(below, rate, size)
    taps = torch.fft.irfft(quotient, size)[..., :length]
    return taps * torch.exp(-rate * torch.arange(length, device=taps.device, dtype=taps.dtype))


def _transform(x: Tensor, rate: float, size: int) -> Tensor:
    damped = x * torch.exp(rate * torch.arange(x.shape[-1], device=x.device, dtype=x.dtype))
    return torch.fft.rfft(damped, size)
