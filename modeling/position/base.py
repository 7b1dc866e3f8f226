"""What a position encoding may do: hooks that change nothing unless an encoding overrides them.

once for the model, before the blocks    add      embeddings with their absolute positions
                                         share    what all layers read as `context.position`
once for each layer, in its attention    rotate   queries and keys before the keys are cached
                                         turn     values before they are cached
                                         scale    queries and all keys, cached ones among them
                                         bias     a term of the scores
                                         read     what the attention weights fetch beside the values
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..state import Context


class PositionEncoding(nn.Module):
    """The identity. Attention calls every hook; an encoding overrides those that it is.

    terms (int): scores are scaled by 1/sqrt(terms * head size): encodings that sum several terms keep their variance.
    causal_only, bidirectional_only: where the encoding has a meaning.
    """

    terms = 1
    causal_only = False
    bidirectional_only = False

    def initialize(self, std: float) -> None:
        """Draw the parameters that lie in no Linear or Embedding, with functions of `torch.nn.init`."""

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        """Embeddings x (b t d) of the tokens ids (b t) with their absolute positions."""
        return x

    def share(self, x: Tensor, context: Context) -> Any:
        """What the layers read as `context.position`, from the embeddings x (b t d)."""
        return None

    def rotate(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Queries and new keys (b h t d) turned by their positions."""
        return q, k

    def turn(self, v: Tensor, context: Context) -> Tensor:
        """New values (b h t d) turned by their positions."""
        return v

    def scale(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Queries (b h t d) and all keys (b h s d), which stand at `context.key_positions`."""
        return q, k

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        """What is added to the scaled scores before the softmax, of a shape that expands to (b h t s), or None."""
        return None

    def read(self, weights: Tensor, context: Context) -> Tensor | None:
        """What is added to the output (b t h d), from the attention weights (b h t s), or None."""
        return None

    @property
    def biased(self) -> bool:
        return type(self).bias is not PositionEncoding.bias

    @property
    def reads(self) -> bool:
        """Whether the attention weights themselves are needed, which only the eager function hands out."""
        return type(self).read is not PositionEncoding.read

    @property
    def sees_keys(self) -> bool:
        """Whether a hook looks at all keys, so that an attention without a score matrix cannot have it."""
        return self.biased or self.reads or type(self).scale is not PositionEncoding.scale


def known_keys(context: Context) -> Tensor:
    """Positions (b s) or (1 s) of all keys. Raises ValueError where the context has none."""
    if context.key_positions is None:
        raise ValueError("this position encoding needs the positions of the keys: `context.key_positions` is None.")
    return context.key_positions


def distances(context: Context) -> Tensor:
    """Position of the query minus position of the key, (b t s) or (1 t s) int64, computed once for all layers."""
    keys = known_keys(context)
    return context.once("distances", lambda: context.positions[:, :, None] - keys[:, None, :])
