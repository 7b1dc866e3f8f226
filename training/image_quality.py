"""How far a reconstruction is from its image."""

import torch
from torch import Tensor

RANGE = 2.0


def peak_signal_to_noise(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """10 log10(range² / mean squared error) of each image, in decibels: (b c h w) in [-1, 1] -> (b).

    The reconstruction is clamped to that range. Equal images have no finite one: they get that of half a level of 255.
    """
    errors = (reconstruction.float().clamp(-1, 1) - pixels.float()).square().flatten(1).mean(1)
    least = (RANGE / 255 / 2) ** 2
    return 10 * torch.log10(RANGE**2 / errors.clamp(min=least))
