"""What softmax attention may see, in the form that the chosen attention function of transformers wants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layout import Layout
from .mixers.softmax_attention import eager_attention

PLAIN = ("eager", "sdpa")


def is_plain(config: PreTrainedConfig) -> bool:
    """Whether the attention function takes any mask, written out."""
    return (config._attn_implementation or "eager") in PLAIN


def choose_attention(config: PreTrainedConfig, layout: Layout) -> Callable:
    """The attention function that the configuration names; kernels that pack by position are told the positions."""
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation or "eager", eager_attention)
    if layout.segments is None or is_plain(config):
        return attention
    return partial(attention, position_ids=layout.positions)


def make_visibility(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    layout: Layout,
    causal: bool,
    dense: bool = False,
):
    """The mask for x (b t d): from a 2-D padding mask, a ready 4-D one (boolean or additive) or packed segments.

    dense: a causal mask is written out even where the attention function could do without it. Raises ValueError for
    packed sequences in a cache that holds keys, which could no longer be told apart.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask.to(x.dtype) if attention_mask.is_floating_point() else attention_mask.bool()
    if layout.segments is None:
        if causal:
            return create_causal_mask(config, x, attention_mask, cache, allow_is_causal_skip=not dense)
        return create_bidirectional_mask(config, x, attention_mask, past_key_values=cache)
    if cache is not None:
        raise ValueError(
            "packed sequences cannot be cached by softmax attention, whose keys would mix: pass `use_cache=False`, or "
            "positions that continue the cached sequence."
        )
    if is_plain(config):
        place = torch.arange(x.shape[1], device=x.device)[None]
        return ordered_visibility(place if causal else torch.zeros_like(place), layout)
    if layout.mask is not None or not causal:
        raise ValueError(f"{config._attn_implementation!r} packs causal rows without padding only: choose 'sdpa'.")
    return create_causal_mask(config, x, None, past_key_values=None, position_ids=layout.positions)


def make_unilm_visibility(config: PreTrainedConfig, x: Tensor, types: Tensor, cache: Cache | None, layout: Layout):
    """UniLM (Dong et al. 2019, arXiv:1905.03197): i sees j where c_j <= c_i,  c = cumsum of the token types (b t).

    Tokens of type 0 that lead a row see one another, those of type 1 what precedes them. Raises ValueError for an
    attention function that takes no such mask, and for packed sequences in a cache.
    """
    if not is_plain(config):
        raise ValueError(f"{config._attn_implementation!r} takes no UniLM mask: choose attn_implementation='sdpa'.")
    if layout.segments is not None and cache is not None:
        raise ValueError("packed sequences cannot be cached by softmax attention: pass `use_cache=False`.")
    visible = ordered_visibility(types.cumsum(1), layout)
    keys = x.shape[1] if cache is None else cache.get_mask_sizes(x.shape[1], 0)[0]
    return F.pad(visible, (0, keys - x.shape[1]))  # the room of a static cache


def ordered_visibility(order: Tensor, layout: Layout) -> Tensor:
    """Boolean (b 1 t t): keys that are real, of the same segment and no later in `order` (b t).

    A token that would see nothing, as some padding would, sees itself.
    """
    visible = order[:, None, :] <= order[:, :, None]
    if layout.segments is not None:
        visible = visible & (layout.segments[:, :, None] == layout.segments[:, None, :])
    if layout.mask is not None:
        visible = visible & layout.mask[:, None, :]
    itself = torch.eye(order.shape[1], dtype=torch.bool, device=order.device)
    return (visible | (itself & ~visible.any(dim=-1, keepdim=True)))[:, None]
