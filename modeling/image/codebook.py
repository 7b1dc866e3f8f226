"""The table of vectors that codes stand for."""

from torch import nn


class Codebook(nn.Embedding):
    """An embedding that begins as VQ-VAE's codebooks do: evenly within 1 / v of the origin, for v vectors."""

    def initialize(self, std: float | None) -> None:
        bound = 1 / self.num_embeddings
        nn.init.uniform_(self.weight, -bound, bound)
