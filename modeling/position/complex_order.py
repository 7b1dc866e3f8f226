"""Complex order: Wang et al. 2019, Encoding Word Order in Complex Embeddings (arXiv:1912.12333), equation 8.

f(j, k)_l = r_(j,l) exp(i (omega_(j,l) k + theta_(j,l)))     word j at position k

Amplitude r and phase theta are those of the word embedding, whose neighbouring channels are real and imaginary part;
omega_(j,l) = 10000^(-2l/d) + delta_(j,l), delta trainable: of each word, or shared by all words.  The trunk is real.
"""

import torch
from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding
from .learned import real_positions
from .rotary import geometric, make_angles, rotate_pairs


class ComplexOrder(PositionEncoding):
    """Turns the pairs of an embedding (b t d) by its position, with frequencies of its word.

    words (int or None): number of words that have frequencies of their own; None where all share those of a channel.
    Raises ValueError for an odd `dim`, and in a call for words without ids (`inputs_embeds`) or without frequencies.
    """

    def __init__(self, dim: int, words: int | None, base: float = 10000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"complex embeddings are pairs of channels, so their width must be even, not {dim}.")
        self.dim, self.words, self.base = dim, words, float(base)
        self.delta = nn.Embedding(words or 1, dim // 2)

    def frequencies(self, x: Tensor, ids: Tensor | None) -> Tensor:
        """omega (b t d/2) or (1 1 d/2), float64 where the device has it."""
        if self.words is None:
            rows = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
        elif ids is None:
            raise ValueError("the frequencies of complex positions belong to words: give `input_ids`.")
        else:
            self.check_words(ids)
            rows = ids
        shared = geometric(self.base, self.dim // 2, self.dim / 2, x.device)
        return shared + self.delta(rows).to(shared.dtype)

    def check_words(self, ids: Tensor) -> None:
        if not torch.compiler.is_compiling() and ids.numel() and int(ids.max()) >= self.delta.num_embeddings:
            raise ValueError(
                f"word {int(ids.max())} has no frequencies: there are those of {self.delta.num_embeddings} words, "
                "and they must grow with the vocabulary."
            )

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = make_angles(real_positions(context), self.frequencies(x, ids)[:, None], dtype)
        return rotate_pairs(x.to(dtype)[:, None], angles)[:, 0].to(x.dtype)
