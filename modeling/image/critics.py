"""Critics, also called discriminators: from samples, and where there are classes labels (b), to one logit each.

mlp    linear layers with LeakyReLU                                     arXiv:1406.2661
dcgan  strided convolutions, batch norm but in the first, LeakyReLU     arXiv:1511.06434
Labels go in beside the sample: an embedding, or for maps one plane     arXiv:1411.1784
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn

from ...configuration.gan import NoriaGANConfig
from .generators import kernel_between, make_norm, map_sizes
from .spectral import apply_spectral_norm


class Critic(nn.Module, ABC):
    """Puts what a label says beside the sample, where there are classes, and runs `main`.

    It is written to be penalised: with labels held fixed it is a function of the sample alone.
    """

    def __init__(self, config: NoriaGANConfig) -> None:
        super().__init__()
        self.sample_shape = config.sample_shape
        self.embed_labels = nn.Embedding(config.num_labels, self.label_size(config)) if config.num_labels else None
        self.main = self.make_layers(config)
        if config.spectral_norm:
            apply_spectral_norm(self.main)

    def label_size(self, config: NoriaGANConfig) -> int:
        return config.label_size

    @abstractmethod
    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        """From what `with_labels` gives to one number for each sample."""

    @abstractmethod
    def with_labels(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """Samples (b ...) with what their labels (b) say beside them."""

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        """samples (b c h w) or (b d), labels (b) or None -> logits (b). Raises ValueError for other shapes."""
        if samples.shape[1:] != self.sample_shape:
            sizes = " ".join(map(str, self.sample_shape))
            raise ValueError(f"samples must be (b {sizes}) for this critic, not of shape {tuple(samples.shape)}.")
        return self.main(self.with_labels(samples, labels)).flatten()


class MLPCritic(Critic):
    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        layers: list[nn.Module] = []
        inner = prod(config.sample_shape) + (config.label_size if config.num_labels else 0)
        for width in config.critic_widths:
            layers += [nn.Linear(inner, width), make_norm(config.critic_norm, width, config, flat=True)]
            layers.append(nn.LeakyReLU(0.2))
            inner = width
        return nn.Sequential(*layers, nn.Linear(inner, 1))

    def with_labels(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        samples = samples.flatten(1)
        return samples if self.embed_labels is None else torch.cat((samples, self.embed_labels(labels)), dim=1)


class DCGANCritic(Critic):
    def label_size(self, config: NoriaGANConfig) -> int:
        return prod(config.sample_shape[1:])

    def make_layers(self, config: NoriaGANConfig) -> nn.Sequential:
        sizes = map_sizes(config.sample_shape[-1], len(config.critic_widths))
        inner = config.num_channels + bool(config.num_labels)
        layers: list[nn.Module] = []
        for layer, (width, size) in enumerate(zip(config.critic_widths, sizes[:-1], strict=True)):
            layers.append(nn.Conv2d(inner, width, kernel_between(size), stride=2, padding=1))
            layers.append(make_norm(config.critic_norm if layer else "none", width, config))
            layers.append(nn.LeakyReLU(0.2))
            inner = width
        return nn.Sequential(*layers, nn.Conv2d(inner, 1, sizes[-1]))

    def with_labels(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        if self.embed_labels is None:
            return samples
        return torch.cat((samples, self.embed_labels(labels).view(-1, 1, *samples.shape[2:])), dim=1)


CRITICS: dict[str, type[Critic]] = {"mlp": MLPCritic, "dcgan": DCGANCritic}
