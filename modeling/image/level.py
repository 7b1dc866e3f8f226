"""The blocks at one resolution, and those in the middle, between encoder and code, or code and decoder.

Modules bear the names that they have in published checkpoints of VQGAN and of latent diffusion.
"""

from torch import Tensor, nn

from ...configuration.vqgan import NoriaVQGANConfig
from .attention import ATTENTIONS
from .residual import ResidualBlock


class Level(nn.Module):
    """`depth` residual blocks from `width_in` to `width_out` channels, each followed by attention where that is on."""

    def __init__(self, width_in: int, width_out: int, depth: int, attends: bool, config: NoriaVQGANConfig) -> None:
        super().__init__()
        widths = [width_in, *[width_out] * depth]
        self.block = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1], config) for i in range(depth))
        attention = ATTENTIONS[config.attention if attends else "none"]
        self.attn = nn.ModuleList(attention(width_out, config) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        return x


class Middle(nn.Module):
    """Two residual blocks around attention, which is there whatever the resolution."""

    def __init__(self, width: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, config)
        self.attn_1 = ATTENTIONS[config.attention](width, config)
        self.block_2 = ResidualBlock(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Checkpointed(nn.Module):
    """A network whose parts are computed again in the backward pass where a training run has asked for that."""

    gradient_checkpointing = False

    def run(self, part: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(part.__call__, x)  # pyright: ignore
        return part(x)
