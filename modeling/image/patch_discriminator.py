"""PatchGAN: Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks (arXiv:1611.07004).

Strided 4x4 convolutions that answer with a map of logits, each for the patch of the image which it sees: with three
layers a patch is 70 pixels wide. The layers are numbered as in taming-transformers' `NLayerDiscriminator`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .actnorm import ActNorm
from .spectral import apply_spectral_norm

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "act": ActNorm,
    "none": lambda width: nn.Identity(),
}
WIDEST = 8


class PatchDiscriminator(nn.Module):
    """Pixels (b c h w) -> logits (b 1 h' w').

    num_channels: of the pixels. hidden_size: channels behind the first convolution, doubled by each further one up to
    eightfold. num_hidden_layers: convolutions behind the first, the last of them without stride. norm: "batch", "act"
    or "none". spectral_norm: every weight is divided by its spectral norm. Raises ValueError for other values, and in
    the forward pass for images too small to leave a logit.
    """

    def __init__(
        self,
        num_channels: int = 3,
        hidden_size: int = 64,
        num_hidden_layers: int = 3,
        norm: str = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("num_channels", num_channels), ("hidden_size", hidden_size)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, not {size}.")
        if num_hidden_layers < 1:
            raise ValueError(f"`num_hidden_layers` must be at least 1, not {num_hidden_layers}.")
        if norm not in NORMS:
            raise ValueError(f"`norm` must be one of {', '.join(NORMS)}, not {norm!r}.")
        self.num_channels, self.num_hidden_layers = num_channels, num_hidden_layers
        layers: list[nn.Module] = [nn.Conv2d(num_channels, hidden_size, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = hidden_size
        for layer in range(1, num_hidden_layers + 1):
            inner, width = width, hidden_size * min(2**layer, WIDEST)
            stride = 2 if layer < num_hidden_layers else 1
            # A batch norm takes the mean away, and with it whatever bias stood before it.
            layers += [nn.Conv2d(inner, width, 4, stride, 1, bias=norm != "batch"), NORMS[norm](width)]
            layers.append(nn.LeakyReLU(0.2))
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        self.main.apply(initialize)
        if spectral_norm:
            apply_spectral_norm(self.main)

    @property
    def receptive_field(self) -> int:
        """Pixels, along each side, that one logit depends on."""
        size = 1
        for layer in reversed([layer for layer in self.main if isinstance(layer, nn.Conv2d)]):
            size = (size - 1) * layer.stride[0] + layer.kernel_size[0]
        return size

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dim() != 4 or pixels.shape[1] != self.num_channels:
            raise ValueError(f"pixels must be (b {self.num_channels} h w), not of shape {tuple(pixels.shape)}.")
        least = 3 * 2**self.num_hidden_layers
        if min(pixels.shape[2:]) < least:
            size = " x ".join(map(str, pixels.shape[2:]))
            raise ValueError(
                f"an image of {size} leaves no logit behind {self.num_hidden_layers} layers: it takes {least} pixels "
                "a side, or fewer layers."
            )
        return self.main(pixels)


def initialize(layer: nn.Module) -> None:
    """N(0, 0.02) for convolutions, N(1, 0.02) for batch norms, as pix2pix has it."""
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
