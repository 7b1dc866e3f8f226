"""What all quantizers share: latents become codes, codes become vectors.

A quantizer works in single precision at least, also under autocast and in models of half precision: the nearest of
16,384 vectors is often nearer than the second by less than half precision can tell.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...configuration.vqgan import NoriaVQGANConfig
from .used_codes import UsedCodes


class QuantizerOutput(NamedTuple):
    """quantized (b d h w), in the latents' dtype, whose gradient goes straight on to them; codes (b h w), int64; loss,
    and perplexity: exp of the entropy of the batch's use of codes; both in float32, or float64 for such latents.
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    perplexity: Tensor


class Quantizer(nn.Module):
    """latents (b d h w) -> QuantizerOutput. A kind of quantizer defines `quantize` and `vectors`."""

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.size = config.vocab_size
        self.used_codes = None if config.used_codes is None else UsedCodes(config.used_codes, config.unknown_code)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents.device):
            wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
            quantized, codes, loss = self.quantize(wide)
            perplexity = code_perplexity(codes, self.size).to(wide.dtype)
        if self.used_codes is not None:
            codes = self.used_codes.place(codes)
        return QuantizerOutput(quantized.to(latents.dtype), codes, loss, perplexity)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (b h w) -> what they stand for, (b d h w), which is what the decoder wants."""
        if self.used_codes is not None:
            codes = self.used_codes.restore(codes)
        with without_autocast(codes.device):
            return self.vectors(codes)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """latents (b d h w), at least float32 -> quantized (b d h w), codes (b h w) of the whole codebook, loss."""
        raise TypeError(f"{type(self).__name__} does not say how it quantizes.")

    def vectors(self, codes: Tensor) -> Tensor:
        """codes (b h w) of the whole codebook -> (b d h w)."""
        raise TypeError(f"{type(self).__name__} does not say what its codes stand for.")


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Keeps autocast from a computation; devices that have none, as meta, are let alone."""
    if torch.amp.autocast_mode.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value`, to the last bit, with the gradient of x."""
    return value.detach() + (x - x.detach())


def count_codes(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs in `codes`, as float32 (size)."""
    counts = torch.zeros(size, device=codes.device)
    return counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=counts.dtype))


@torch.no_grad()
def code_perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of the codes' frequencies: 1 where they are all one, `size` where each is used alike."""
    frequencies = count_codes(codes, size) / codes.numel()
    return torch.special.entr(frequencies).sum().exp()
