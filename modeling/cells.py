"""Where the backbone finds the state of each layer: in a recurrent layer, in transformers' growing ones, or nowhere.

A cell has `read(block, x) -> state` before the block runs and `write(state, x, context)` after it.
"""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache

from .state import Context, State


class KeyValues:
    """One of transformers' own growing layers, in the place where recurrent mixers find their state."""

    def __init__(self, cache: Cache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    def read(self, block, x: Tensor) -> KeyValues:
        return self

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b h t d) of the new tokens -> those of all tokens (b h s d)."""
        return self.cache.update(keys, values, self.layer)

    def write(self, state: State, x: Tensor, context: Context) -> None:
        """The mixer has written already."""


class NoState:
    """Where nothing is to be kept."""

    def read(self, block, x: Tensor) -> None:
        return None

    def write(self, state: State, x: Tensor, context: Context) -> None:
        """Forgotten."""


def cells(cache: Cache | None, layers: int) -> list:
    """The cells of `layers` layers; a layer that can be written is its own cell."""
    if cache is None:
        return [NoState()] * layers
    return [layer if hasattr(layer, "write") else KeyValues(cache, i) for i, layer in enumerate(cache.layers)]
