"""Rotary frequencies for longer texts than a model was trained on, computed by transformers' own functions.

`config.rope_parameters` names the kind as `rope_type`: "linear" (arXiv:2306.15595), "dynamic" (NTK-aware), "yarn"
(arXiv:2309.00071), "longrope" (arXiv:2402.13753), "llama3", "proportional".
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .position.base import PositionEncoding
from .position.rotary import Rotary, wide_dtype
from .position.rotary_by_length import RotaryByLength

BY_LENGTH = ("dynamic", "longrope")


def rope_frequencies(config: Any, length: int | None = None) -> tuple[tuple[float, ...], float]:
    """theta and the factor of cos and sin, as transformers computes them for texts of `length` tokens.

    As numbers, not tensors: models are built on the meta device, and buffers come back unset from a file.
    """
    device = torch.device("cpu")
    with device:
        frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, device, seq_len=length)
    return tuple(frequencies.tolist()), float(factor)


class FrequenciesByLength:
    """Lengths (b t) -> theta (b t rotated/2): those of a short text up to the trained length, then the kind's own."""

    def __init__(self, config: Any) -> None:
        rope = config.rope_parameters
        self.config, self.kind = config, rope["rope_type"]
        self.trained = config.max_position_embeddings
        self.short = self.long = rope_frequencies(config)[0]
        if self.kind == "longrope":
            self.trained = rope["original_max_position_embeddings"]
            self.long = rope_frequencies(config, self.trained + 1)[0]

    def __call__(self, lengths: Tensor) -> Tensor:
        device, wide = lengths.device, wide_dtype(lengths.device)
        lengths = lengths[..., None]
        if self.kind == "dynamic":
            # Powers in float32 would depend on a token's place in the batch, by the lanes of a vector.
            long = ROPE_INIT_FUNCTIONS["dynamic"](self.config, device, seq_len=lengths.to(wide))[0]  # pyright: ignore
        else:
            long = torch.tensor(self.long, dtype=wide, device=device)
        return torch.where(lengths > self.trained, long, torch.tensor(self.short, dtype=wide, device=device))


def scale_rope(position: PositionEncoding, config: Any) -> PositionEncoding:
    """A layer's encoding as `config.rope_parameters` wants it; any other than a rotary one is returned as it is.

    Raises ValueError for a `rope_type` that transformers does not know, and for frequencies that depend on the length
    where the encoding cannot have them.
    """
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default" or not isinstance(position, Rotary):
        return position
    if kind not in ROPE_INIT_FUNCTIONS:
        raise ValueError(f"unknown `rope_type` {kind!r}: choose from {['default', *sorted(ROPE_INIT_FUNCTIONS)]}.")
    if kind == "dynamic" and position.rotated < 4:
        raise ValueError(f"dynamic scaling takes at least 4 channels to turn, not {position.rotated}.")
    position.take(*rope_frequencies(config))
    return RotaryByLength(position, FrequenciesByLength(config)) if kind in BY_LENGTH else position
