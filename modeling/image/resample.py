"""Halving and doubling the sides of a map."""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from ...configuration.vqgan import NoriaVQGANConfig
from ..ops.doubled_convolution import convolve_doubled


class Downsample(nn.Module):
    """x (b c h w) -> (b c h/2 w/2); the convolution pads on the right and below only, as in published models."""

    def __init__(self, width: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2) if config.resample_with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2) if self.conv is None else self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """x (b c h w) -> (b c 2h 2w), every place repeated."""

    def __init__(self, width: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if config.resample_with_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if is_plain(self.conv):
            return convolve_doubled(x, self.conv.weight, self.conv.bias)
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a Conv2d with nothing around it: no adapter, parametrization, hook or offloading."""
    wrapped = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module) is nn.Conv2d and not wrapped
