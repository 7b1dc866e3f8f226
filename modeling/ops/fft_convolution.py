"""Long convolutions by the Fourier transform, padded with zeros so that nothing wraps around.

    y_t = sum_(j <= t) k_(t-j) u_j,   and with a backward kernel also   sum_(j > t) r_(j-t-1) u_j

The convention throughout: y_t includes u_t, by k_0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fft_convolution(u: Tensor, kernel: Tensor, backward: Tensor | None = None) -> Tensor:
    """u (b h t), kernel and backward (h t) of one real dtype, float32 or float64 -> y (b h t)."""
    length = u.shape[-1]
    size = 2 * length
    response = torch.fft.rfft(kernel, size)
    if backward is not None:
        # Run from the end, the kernel is the conjugate; one zero ahead leaves out u_t, which is counted already.
        response = response + torch.fft.rfft(F.pad(backward[..., :-1], (1, 0)), size).conj()
    return torch.fft.irfft(torch.fft.rfft(u, size) * response, size)[..., :length]
