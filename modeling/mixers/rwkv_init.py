"""How the parameters of RWKV's mixes begin: ramps over the channels, as in the published training code."""

import torch
from torch import Tensor, nn


def channel_ramp(width: int) -> Tensor:
    """i / width for i = 0 .. width-1."""
    return torch.arange(width) / width


def set_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Give `parameter` its first values, unless it was loaded from a file."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(values.to(parameter.dtype).expand(parameter.shape))
