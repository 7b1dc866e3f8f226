"""A 3 x 3 convolution of a map whose places have been doubled along both sides, without making the larger map.

    conv3(double(x)) = conv_transpose4(x, K),   K = w * ones(2, 2)

Two of three neighbours of a doubled place are the same place of x: a quarter of the results' 9 products become 4, as a
transposed convolution of step 2 with the kernel w summed over 2 x 2.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

from .dispatch import check_form, choose_form

# Below so many places, making the kernel costs more than it saves.
LEAST_PLACES = 1024


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None, form: str | None = None) -> Tensor:
    """x (b i h w), weight (o i 3 3), bias (o) or None -> (b o 2h 2w), zeros around the doubled map.

    form: None lets dispatch choose; "fast" is the transposed convolution, any other doubles first. Raises ValueError
    for an unknown form, and for a weight of another size.
    """
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be of shape (o i 3 3), not {tuple(weight.shape)}.")
    places = x.shape[0] * x.shape[2] * x.shape[3]
    if form is None:
        form = choose_form(x.device, places) if places >= LEAST_PLACES else "chunkwise"
    if check_form(form) != "fast":
        return conv2d(interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    return conv_transpose2d(x, _summed(weight), bias, stride=2, padding=1)


def _summed(weight: Tensor) -> Tensor:
    """(o i 3 3) -> (i o 4 4), the sums over 2 x 2 places, of kernels turned around, with zeros about them."""
    wide = pad(weight.to(torch.promote_types(weight.dtype, torch.float32)).transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
    rows = wide[..., :-1, :] + wide[..., 1:, :]
    return (rows[..., :-1] + rows[..., 1:]).to(weight.dtype)
