"""The block that VQGAN's encoder and decoder are made of: two normed convolutions beside a shortcut."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ...configuration.vqgan import NoriaVQGANConfig


class GroupNorm(nn.GroupNorm):
    """PyTorch's, which refuses a map of one place with as many groups as channels; there the result is the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(width: int, config: NoriaVQGANConfig) -> GroupNorm:
    return GroupNorm(config.norm_num_groups or 1, width, eps=config.norm_eps)


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))) for x (b c h w); a 1x1 convolution of x where c changes."""

    def __init__(self, width_in: int, width_out: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(width_in, config)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = make_norm(width_out, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Fresh memory costs more than the arithmetic; where gradients are kept, the norm's result is needed again.
        in_place = not torch.is_grad_enabled()
        y = self.conv1(silu(self.norm1(x), inplace=in_place))
        y = self.conv2(self.dropout(silu(self.norm2(y), inplace=in_place)))
        shortcut = self.nin_shortcut(x)
        return y.add_(shortcut) if in_place and y.dtype == shortcut.dtype else shortcut + y
