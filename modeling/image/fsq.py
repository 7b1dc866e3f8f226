"""Finite scalar quantization: Mentzer et al. 2023, VQ-VAE Made Simple (arXiv:2309.15505).

    each of a few channels is bounded, z_i -> floor(L_i / 2) tanh(z_i), and rounded: prod_i L_i codes, none learned

Rounding, and the numbering of codes, are those of the package vector-quantize-pytorch, which is imported when such a
model is made. There is nothing to learn but the maps into the channels and out of them, hence no loss.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ...configuration.vqgan import NoriaVQGANConfig
from ..mixers.step_size import fill
from .quantizer import Quantizer, straight_through


def make_rounding(levels: list[int]) -> nn.Module:
    """The package's module for `levels`, on the processor. Raises ImportError where the package is missing."""
    try:
        package = import_module("vector_quantize_pytorch")
    except ImportError as error:
        raise ImportError(
            'quantizer "fsq" needs the package vector-quantize-pytorch, which cannot be imported here '
            f"({error}): install noria[fsq], or choose another quantizer."
        ) from error
    # It reads numbers off its buffers while it is made, which meta tensors do not have.
    with torch.device("cpu"):
        return package.FSQ(levels=levels)


class RoundingQuantizer(Quantizer):
    """A linear map into as many channels as there are levels, rounding, and a linear map back."""

    sizes: Tensor
    rounding: Any

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__(config)
        self.levels = list(config.fsq_levels or ())
        self.project_in = nn.Linear(config.code_size, len(self.levels))
        self.project_out = nn.Linear(len(self.levels), config.code_size)
        self.rounding = make_rounding(self.levels)
        # Only modules that hold a tensor themselves are asked to initialise what a file did not bring.
        self.register_buffer("sizes", torch.tensor(self.levels), persistent=False)

    def initialize(self, std: float | None) -> None:
        fill(self.sizes, torch.tensor(self.levels))
        # The package saves no buffers, so loading leaves them without values.
        for name, values in make_rounding(self.levels).named_buffers():
            fill(self.rounding.get_buffer(name), values)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.project_in(latents.movedim(1, -1).to(self.project_in.bias.dtype)).to(latents.dtype)
        rounded, codes = self.rounding(z.flatten(0, -2)[None])
        codes = codes.view(z.shape[:-1]).long()
        values = straight_through(self.values(codes).to(z.dtype), rounded.view(z.shape))
        return self.widened(values), codes, latents.new_zeros(())

    def vectors(self, codes: Tensor) -> Tensor:
        return self.widened(self.values(codes))

    def values(self, codes: Tensor) -> Tensor:
        """codes (...) -> the channels' rounded values (... n), between -1 and 1."""
        return self.rounding.indices_to_codes(codes.flatten()).view(*codes.shape, len(self.levels))

    def widened(self, values: Tensor) -> Tensor:
        return self.project_out(values.to(self.project_out.bias.dtype)).to(values.dtype).movedim(-1, 1)
