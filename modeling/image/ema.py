"""A codebook of running means: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1.

    N_k <- decay N_k + (1 - decay) n_k      m_k <- decay m_k + (1 - decay) s_k      e_k = m_k / N_k

n_k counts the latents whose code is k, and s_k is their sum, over the batches of all processes. N is smoothed, so that
a code that nobody uses does not blow up. Only the commitment has a gradient: loss = beta |z - sg(e)|^2.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...configuration.vqgan import NoriaVQGANConfig
from ..mixers.step_size import fill
from .processes import sum_over_processes
from .quantizer import count_codes
from .vq import VectorQuantizer

SMOOTHING = 1e-5


class MeanQuantizer(VectorQuantizer):
    """The nearest of running means, which follow the latents while training."""

    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__(config)
        self.decay = config.ema_decay
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("cluster_size", torch.ones(config.vocab_size))
        self.register_buffer("embed_avg", torch.zeros_like(self.embedding.weight))

    def initialize(self, std: float | None) -> None:
        nn.init.ones_(self.cluster_size)
        fill(self.embed_avg, self.embedding.weight)

    def loss(self, code_vectors: Tensor, z: Tensor) -> Tensor:
        return self.commitment_cost * mse_loss(z, code_vectors.detach())

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor) -> None:
        counts = sum_over_processes(count_codes(codes, self.size))
        sums = torch.zeros_like(self.embed_avg, dtype=z.dtype)
        sums = sum_over_processes(sums.index_add_(0, codes.flatten(), z.flatten(0, -2)))
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), 1 - self.decay)
        self.embed_avg.lerp_(sums.to(self.embed_avg.dtype), 1 - self.decay)
        if self.dead_codes is not None:
            dead = self.dead_codes.revive(counts, z.flatten(0, -2), self.embed_avg)
            self.cluster_size.masked_fill_(dead, 1)
        total = self.cluster_size.sum()
        smooth = (self.cluster_size + SMOOTHING) / (total + self.size * SMOOTHING) * total
        self.embedding.weight.copy_(self.embed_avg / smooth[:, None])
