"""Vector quantization: van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv:1711.00937).

    code = argmin_k |z - e_k|^2        loss = |sg(z) - e|^2 + beta |z - sg(e)|^2

taming-transformers wrote beta in front of the first term, and all its models were trained so: `legacy_commitment`.
Codes that are looked up in fewer channels, or at unit length: Yu et al. 2021, Vector-quantized Image Modeling with
Improved VQGAN (arXiv:2110.04627). The losses are then taken where codes are looked up.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from ...configuration.vqgan import NoriaVQGANConfig
from ..ops.nearest_code import nearest_codes
from .codebook import Codebook
from .dead_codes import DeadCodes
from .processes import sum_over_processes
from .quantizer import Quantizer, count_codes, straight_through


class VectorQuantizer(Quantizer):
    """The nearest vector of a codebook that learns from the loss."""

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__(config)
        width, narrow = config.code_size, config.factorized_size
        self.embedding = Codebook(config.vocab_size, narrow or width)
        self.project_in = nn.Linear(width, narrow) if narrow else nn.Identity()
        self.project_out = nn.Linear(narrow, width) if narrow else nn.Identity()
        self.normalizes = config.normalize_codes
        self.commitment_cost, self.legacy = config.commitment_cost, config.legacy_commitment
        self.dead_codes = DeadCodes(config.vocab_size, config.revive_after) if config.revive_after else None

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.compared(self.project_in(latents.movedim(1, -1).to(self.embedding.weight.dtype)).to(latents.dtype))
        with torch.no_grad():
            codebook = self.compared(self.embedding.weight.to(z.dtype))
            codes = nearest_codes(z.flatten(0, -2), codebook).view(z.shape[:-1])
        code_vectors = self.compared(self.embedding(codes).to(z.dtype))
        loss = self.loss(code_vectors, z)
        if self.training:
            self.learn(z.detach(), codes)
        return self.widened(straight_through(code_vectors, z)), codes, loss

    def vectors(self, codes: Tensor) -> Tensor:
        found = self.embedding(codes)
        return self.widened(self.compared(found.to(torch.promote_types(found.dtype, torch.float32))))

    def compared(self, x: Tensor) -> Tensor:
        """x (... d) as it is compared."""
        return normalize(x, dim=-1) if self.normalizes else x

    def widened(self, x: Tensor) -> Tensor:
        """x (b h w d) as the decoder wants it, (b d h w)."""
        return self.project_out(x.to(self.embedding.weight.dtype)).to(x.dtype).movedim(-1, 1)

    def loss(self, code_vectors: Tensor, z: Tensor) -> Tensor:
        codebook, commitment = mse_loss(code_vectors, z.detach()), mse_loss(z, code_vectors.detach())
        if self.legacy:
            return commitment + self.commitment_cost * codebook
        return codebook + self.commitment_cost * commitment

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor) -> None:
        """What a training step does to the codebook beside its gradient. z (b h w d), codes (b h w)."""
        if self.dead_codes is not None:
            counts = sum_over_processes(count_codes(codes, self.size))
            self.dead_codes.revive(counts, z.flatten(0, -2), self.embedding.weight)
