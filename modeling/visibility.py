"""What softmax attention may see, in the form that the chosen attention function of transformers wants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layout import Layout
from .mixers.softmax_attention import eager_attention

PLAIN = ("eager", "sdpa")


def choose_attention(config: PreTrainedConfig, layout: Layout) -> Callable:
    """The attention function that the configuration names; kernels that pack by position are told the positions."""
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation or "eager", eager_attention)
    if layout.segments is None or config._attn_implementation in PLAIN:
        return attention
    return partial(attention, position_ids=layout.positions)


def make_visibility(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    layout: Layout,
    causal: bool,
):
    """The mask for x (b t d): from a 2-D padding mask, a ready 4-D one (boolean or additive) or packed segments.

    Raises ValueError for packed sequences in a cache that holds keys, which could no longer be told apart.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask.to(x.dtype) if attention_mask.is_floating_point() else attention_mask.bool()
    if layout.segments is None:
        create = create_causal_mask if causal else create_bidirectional_mask
        return create(config, x, attention_mask, past_key_values=cache)
    if cache is not None:
        raise ValueError(
            "packed sequences cannot be cached by softmax attention, whose keys would mix: pass `use_cache=False`, or "
            "positions that continue the cached sequence."
        )
    if config._attn_implementation in PLAIN:
        return packed_visibility(layout.segments, layout.mask, causal)
    if layout.mask is not None or not causal:
        raise ValueError(f"{config._attn_implementation!r} packs causal rows without padding only: choose 'sdpa'.")
    return create_causal_mask(config, x, None, past_key_values=None, position_ids=layout.positions)


def packed_visibility(segments: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Boolean (b 1 t t): the same segment, not later where causal, and real; a token always sees itself."""
    visible = segments[:, :, None] == segments[:, None, :]
    if mask is not None:
        visible = visible & mask[:, None, :]
    if causal:
        visible = visible.tril()
    return (visible | torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device))[:, None]
