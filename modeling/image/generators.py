"""Generators: from latents z (b n), and where there are classes labels (b), to samples.

mlp    linear layers with LeakyReLU and batch norm, as in the first article's game on digits    arXiv:1406.2661
dcgan  strided transposed convolutions, batch norm and ReLU from a map of one pixel to images   arXiv:1511.06434
Labels go in as an embedding beside the latents                                                 arXiv:1411.1784
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn

from ...configuration.gan import NoriaGANConfig

OUTPUTS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "linear": nn.Identity}


def map_sizes(size: int, halvings: int) -> list[int]:
    """The side of an image and of each map below it, halved and rounded up, from full size down."""
    sizes = [size]
    for _ in range(halvings):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def kernel_between(large: int) -> int:
    """The kernel that leads, at stride 2 and padding 1, from half of `large`, rounded up, to `large`, and back."""
    return 3 if large % 2 else 4


def make_norm(name: str, width: int, config: NoriaGANConfig, flat: bool = False) -> nn.Module:
    """Over `width` channels of vectors (b width) where `flat` holds, of maps (b width h w) otherwise."""
    if name == "batch":
        batch_norm = nn.BatchNorm1d if flat else nn.BatchNorm2d
        return batch_norm(width, eps=config.norm_eps, momentum=1 - config.norm_momentum)
    if name == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps) if flat else nn.GroupNorm(1, width, eps=config.norm_eps)
    return nn.Identity()


class Generator(nn.Module, ABC):
    """Puts a label's embedding beside the latents, where there are classes, and runs `main`."""

    def __init__(self, config: NoriaGANConfig) -> None:
        super().__init__()
        self.embed_labels = nn.Embedding(config.num_labels, config.label_size) if config.num_labels else None
        self.input_size = config.latent_size + (config.label_size if config.num_labels else 0)
        self.main = self.make_layers(config)

    @abstractmethod
    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        """From vectors of `input_size` to samples."""

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """latents (b n), labels (b) or None -> samples (b c h w) or (b d)."""
        if self.embed_labels is not None:
            latents = torch.cat((latents, self.embed_labels(labels)), dim=1)
        return self.main(latents)


class MLPGenerator(Generator):
    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        layers: list[nn.Module] = []
        inner = self.input_size
        for width in config.generator_widths:
            layers += [nn.Linear(inner, width), nn.LeakyReLU(0.2)]
            layers.append(make_norm(config.generator_norm, width, config, flat=True))
            inner = width
        layers += [nn.Linear(inner, prod(config.sample_shape)), OUTPUTS[config.output]()]
        return nn.Sequential(*layers, nn.Unflatten(1, config.sample_shape))


class DCGANGenerator(Generator):
    """Maps double at each layer; a kernel of 3 instead of 4 leads to odd sizes, so that any size is reached."""

    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        sizes = map_sizes(config.sample_shape[-1], len(config.generator_widths))[::-1]
        widths = [*config.generator_widths, config.num_channels]
        layers: list[nn.Module] = [nn.Unflatten(1, (self.input_size, 1, 1))]
        layers.append(nn.ConvTranspose2d(self.input_size, widths[0], sizes[0]))
        for inner, width, size in zip(widths[:-1], widths[1:], sizes[1:], strict=True):
            layers += [make_norm(config.generator_norm, inner, config), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(inner, width, kernel_between(size), stride=2, padding=1))
        return nn.Sequential(*layers, OUTPUTS[config.output]())


GENERATORS: dict[str, type[Generator]] = {"mlp": MLPGenerator, "dcgan": DCGANGenerator}
