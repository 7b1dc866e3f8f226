"""How much of a codebook is in use, over as many batches and processes as one likes."""

import torch
from torch import Tensor


class CodebookUsage:
    """Counts codes from 0 to size - 1."""

    def __init__(self, size: int) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """codes: integers of any shape."""
        self.counts += codes.flatten().cpu().bincount(minlength=len(self.counts))

    def clear(self) -> None:
        self.counts.zero_()

    def measures(self, counts: Tensor | None = None) -> dict[str, float]:
        """codebook_usage: the share of codes that occurred; codebook_perplexity: exp of their entropy.

        counts: those of all processes, by default its own. {} where nothing was counted.
        """
        counts = (self.counts if counts is None else counts.cpu()).double()
        if not counts.any():
            return {}
        entropy = torch.special.entr(counts / counts.sum()).sum()
        usage = (counts > 0).double().mean()
        return {"codebook_usage": usage.item(), "codebook_perplexity": entropy.exp().item()}
