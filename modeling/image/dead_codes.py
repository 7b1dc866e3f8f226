"""Codes that fall out of use come back as vectors of the batch: Dhariwal et al. 2020, Jukebox (arXiv:2005.00341)."""

import torch
from torch import Tensor, nn

from .processes import from_first_process


class DeadCodes(nn.Module):
    """Counts, for each code, the training steps since it was used; after `patience` of them it is dead."""

    idle: Tensor

    def __init__(self, size: int, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.register_buffer("idle", torch.zeros(size, dtype=torch.long))

    def initialize(self, std: float | None) -> None:
        nn.init.zeros_(self.idle)

    def revive(self, counts: Tensor, vectors: Tensor, codebook: Tensor) -> Tensor:
        """Replace the dead rows of `codebook` (v d) by random rows of `vectors` (n d), by torch's generator.

        counts (v): how often all processes used each code in this step. Returns which were dead, (v) of bool.
        """
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        dead = self.idle >= self.patience
        if dead.any():
            drawn = vectors[torch.randint(len(vectors), (len(counts),), device=vectors.device)]
            drawn = from_first_process(drawn.contiguous())
            codebook.copy_(torch.where(dead[:, None], drawn.to(codebook.dtype), codebook))
            self.idle.masked_fill_(dead, 0)
        return dead
