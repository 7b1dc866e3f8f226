"""VQGAN's encoder: from pixels down to a map of latents."""

from torch import Tensor, nn
from torch.nn.functional import silu

from ...configuration.vqgan import NoriaVQGANConfig
from .level import Checkpointed, Level, Middle
from .resample import Downsample
from .residual import make_norm


class EncoderLevel(Level):
    """The blocks of one resolution, and the step to the next."""

    def __init__(self, level: int, config: NoriaVQGANConfig) -> None:
        widths = [config.hidden_size, *config.level_widths]
        depth = config.num_hidden_layers
        attends = config.image_size // 2**level in config.attention_resolutions
        super().__init__(widths[level], widths[level + 1], depth, attends, config)
        # A level without blocks leaves the width as it is.
        self.width = widths[level + 1] if depth else widths[level]
        last = level == len(config.channel_multipliers) - 1
        self.downsample = nn.Identity() if last else Downsample(self.width, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class Encoder(Checkpointed):
    """pixels (b c h w) -> latents (b z h/f w/f), f the downsampling factor."""

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.num_channels, config.hidden_size, 3, padding=1)
        levels = [EncoderLevel(level, config) for level in range(len(config.channel_multipliers))]
        self.down = nn.ModuleList(levels)
        width = levels[-1].width
        self.mid = Middle(width, config)
        self.norm_out = make_norm(width, config)
        self.conv_out = nn.Conv2d(width, config.latent_channels * (1 + config.double_latent), 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for part in (*self.down, self.mid):
            x = self.run(part, x)
        return self.conv_out(silu(self.norm_out(x)))
