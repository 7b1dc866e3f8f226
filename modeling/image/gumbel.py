"""The Gumbel softmax over codes: Jang et al. 2016, Categorical Reparameterization (arXiv:1611.01144).

    p = softmax((logits + Gumbel noise) / temperature)      quantized = sum_k p_k e_k
    loss = kl_weight mean(sum_k q_k log(q_k V + 1e-10)),    q = softmax(logits): its divergence from uniform use

Noise is drawn while training only; the code of a place is otherwise its largest logit.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from ...configuration.vqgan import NoriaVQGANConfig
from .quantizer import Quantizer


class GumbelQuantizer(Quantizer):
    """`temperature` may be set at every step, as taming's schedule does."""

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__(config)
        self.proj = nn.Conv2d(config.code_size, config.vocab_size, 1)
        self.embedding = nn.Embedding(config.vocab_size, config.code_size)
        self.temperature = float(config.gumbel_temperature)
        self.straight_through, self.kl_weight = config.straight_through, config.kl_weight

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(latents)
        weights = self.used_weights(latents.dtype)
        loss = self.kl_weight * divergence(logits, self.size)
        if not self.training:
            codes = self.of_all(logits.argmax(1))
            return self.vectors(codes).to(latents.dtype), codes, loss
        shares = gumbel_softmax(logits, tau=self.temperature, hard=self.straight_through, dim=1)
        quantized = torch.einsum("bnhw,nd->bdhw", shares, weights)
        return quantized, self.of_all(shares.argmax(1)), loss

    def logits(self, latents: Tensor) -> Tensor:
        """latents (b d h w) -> the logits (b v h w) of the codes that may be chosen: of those in use, where told."""
        logits = self.proj(latents.to(self.proj.weight.dtype)).to(latents.dtype)
        return logits if self.used_codes is None else logits[:, self.used_codes.used]

    def used_weights(self, dtype: torch.dtype) -> Tensor:
        used = None if self.used_codes is None else self.used_codes.used
        weights = self.embedding.weight.to(dtype)
        return weights if used is None else weights[used]

    def of_all(self, codes: Tensor) -> Tensor:
        """Codes among those that may be chosen -> codes of the whole codebook."""
        return codes if self.used_codes is None else self.used_codes.restore(codes)

    def vectors(self, codes: Tensor) -> Tensor:
        found = self.embedding(codes).movedim(-1, 1)
        return found.to(torch.promote_types(found.dtype, torch.float32))


def divergence(logits: Tensor, size: int) -> Tensor:
    """The mean over places of the divergence of softmax(logits) (b v h w) from uniform use of `size` codes."""
    q = logits.softmax(1)
    return (q * torch.log(q * size + 1e-10)).sum(1).mean()
