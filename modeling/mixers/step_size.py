"""How the step sizes of a state-space model begin, and how a parameter gets values that no torch function draws.

    softplus(dt_bias) = max(exp(U(log min, log max)), floor)

as Mamba (arXiv:2312.00752, section 3.6) and Mamba-2 draw them.
"""

import math

import torch
from torch import Tensor, nn


def fill(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter or a buffer its first values, unless it was loaded."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(values)


def draw_step_bias(parameter: nn.Parameter, least: float, most: float, floor: float) -> None:
    """Draw what softplus turns into steps between `least` and `most`, evenly in their logarithm, and above `floor`."""
    drawn = torch.rand(parameter.shape, device=parameter.device, dtype=torch.float64)
    step = (math.log(least) + drawn * (math.log(most) - math.log(least))).exp().clamp(min=floor)
    fill(parameter, step + (-torch.expm1(-step)).log())
