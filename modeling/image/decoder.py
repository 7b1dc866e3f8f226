"""VQGAN's decoder: from a map of latents up to pixels."""

from torch import Tensor, nn
from torch.nn.functional import silu

from ...configuration.vqgan import NoriaVQGANConfig
from .level import Checkpointed, Level, Middle
from .resample import Upsample
from .residual import make_norm


class DecoderLevel(Level):
    """The blocks of one resolution, one more than the encoder has, and the step to the next finer one."""

    def __init__(self, level: int, config: NoriaVQGANConfig) -> None:
        widths = config.level_widths
        last = len(widths) - 1
        attends = config.image_size // config.downsampling * 2 ** (last - level) in config.attention_resolutions
        width_in = widths[min(level + 1, last)]
        super().__init__(width_in, widths[level], config.num_hidden_layers + 1, attends, config)
        self.upsample = Upsample(widths[level], config) if level else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Decoder(Checkpointed):
    """latents (b z h w) -> pixels (b c fh fw). `up` counts levels from full resolution, and runs from its end."""

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__()
        widths, channels = config.level_widths, config.output_channels
        assert channels is not None
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList(DecoderLevel(level, config) for level in range(len(widths)))
        self.norm_out = make_norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)
        self.tanh_output = config.tanh_output

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)
        for part in (self.mid, *reversed(self.up)):
            x = self.run(part, x)
        x = self.conv_out(silu(self.norm_out(x)))
        return x.tanh() if self.tanh_output else x
