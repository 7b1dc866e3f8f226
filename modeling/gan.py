"""GAN: Goodfellow et al. 2014, Generative Adversarial Networks (arXiv:1406.2661), and the critics that came after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.gan import NoriaGANConfig
from .checked_files import CheckedFiles
from .image.critics import CRITICS
from .image.generators import GENERATORS
from .image.latents import Seed, check_labels, draw_latents
from .image.spectral import own_weight, restart_power_iteration

# Of DCGAN: the standard deviation of all weights at first, that of the norms' about 1.
DCGAN_RANGE = 0.02


@dataclass
class NoriaGANOutput(ModelOutput):
    """pixel_values (b c h w), or (b d) where samples are vectors; latents (b n), which they were made from."""

    pixel_values: Tensor | None = None
    latents: Tensor | None = None


class NoriaGANModel(CheckedFiles):
    """A generator and the critic that it is trained against, in one folder.

    `model.generator(latents, labels)` gives samples and `model.critic(samples, labels)` a logit (b) for each; labels
    (b) where `num_labels` is not 0. Images are in [-1, 1] where the output is "tanh".
    """

    config: NoriaGANConfig
    base_model_prefix = "gan"
    main_input_name = "latents"
    _can_compile_fullgraph = True

    def __init__(self, config: NoriaGANConfig) -> None:
        super().__init__(config)
        self.generator = GENERATORS[config.generator](config)
        self.critic = CRITICS[config.critic](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            convolution = not isinstance(module, nn.Linear)
            initialize(module, DCGAN_RANGE if std is None and convolution else std)
            restart_power_iteration(module)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        else:
            super()._init_weights(module)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, DCGAN_RANGE)

    def get_input_embeddings(self) -> nn.Module:
        return next(layer for layer in self.generator.main if isinstance(layer, nn.Linear | nn.ConvTranspose2d))

    def draw_latents(self, batch_size: int = 1, seed: Seed = None) -> Tensor:
        """Latents (batch_size n) on the model's device, the same ones for a seed on all of them."""
        latents = draw_latents(batch_size, self.config.latent_size, self.config.latent_distribution, seed)
        return latents.to(self.device, self.dtype)

    @can_return_tuple
    def forward(
        self,
        latents: Tensor | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        batch_size: int = 1,
    ) -> NoriaGANOutput:
        """latents (b n), or `batch_size` of them drawn by torch's generator -> the samples that the generator makes.

        Raises ValueError for latents of another width, and for labels that do not fit the model and the batch.
        """
        if latents is None:
            latents = self.draw_latents(batch_size)
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_size:
            raise ValueError(f"latents must be (b {self.config.latent_size}), not of shape {tuple(latents.shape)}.")
        labels = check_labels(labels, self.config.num_labels, len(latents))
        if labels is not None:
            labels = labels.to(latents.device)
        return NoriaGANOutput(pixel_values=self.generator(latents.to(self.dtype), labels), latents=latents)

    @torch.no_grad()
    def generate_images(
        self,
        batch_size: int | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        seed: Seed = None,
    ) -> Tensor:
        """Samples (b c h w), or (b d), in evaluation mode.

        batch_size: by default as many as there are labels or seeds, or 1. seed: one for the batch, or one for each
        sample, which then does not depend on the others. Raises ValueError where these do not fit one another.
        """
        if batch_size is None:
            counted = [torch.as_tensor(given) for given in (labels, seed) if given is not None]
            batch_size = max((len(given) for given in counted if given.ndim), default=1)
        training = self.training
        self.eval()
        try:
            return self(self.draw_latents(batch_size, seed), labels).pixel_values
        finally:
            self.train(training)


def initialize(layer: nn.Module, std: float | None) -> None:
    """Weights from N(0, std) and no bias, or by PyTorch's own rule where `std` is None."""
    weight, bias = own_weight(layer), layer.get_parameter("bias")
    if std is not None:
        nn.init.normal_(weight, 0.0, std)
        nn.init.zeros_(bias)
        return
    nn.init.kaiming_uniform_(weight, a=5**0.5)
    bound = weight.shape[1] ** -0.5
    nn.init.uniform_(bias, -bound, bound)


__all__ = ["NoriaGANModel", "NoriaGANOutput"]
