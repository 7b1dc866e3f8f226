"""Softmax attention whose first tokens see one another in both directions, as a prompt that is given whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


def prefix_visibility(length: int, prefix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (1 1 t t): token i sees j where j <= i, or where both are below `prefix`."""
    place = torch.arange(length, device=device)
    visible = (place[None] <= place[:, None]) | ((place[None] < prefix) & (place[:, None] < prefix))
    mask = torch.zeros(length, length, dtype=dtype, device=device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[None, None]


class PrefixMask:
    """A hook before a causal language model's forward, in training and in generate() alike.

    What continues a cache comes after the prefix and needs no other mask than its own.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix

    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given, cache = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")], kwargs.get("past_key_values")
        tokens = next(x for x in given if x is not None)
        if cache is not None and cache.get_seq_length():
            return args, kwargs
        length, dtype = tokens.shape[1], next(model.parameters()).dtype
        mask = prefix_visibility(length, self.prefix, dtype, tokens.device)
        keys = length if cache is None else cache.get_mask_sizes(length, 0)[0]  # a static cache has room for more
        mask = F.pad(mask, (0, keys - length), value=torch.finfo(dtype).min)
        return args, {**kwargs, "attention_mask": mask.expand(tokens.shape[0], -1, -1, -1)}


def unmask_prefix(model: PreTrainedModel, prefix: int) -> None:
    """Let the first `prefix` tokens of a causal language model see one another.

    Raises ValueError for a model whose layers are not all full softmax attention with a mask that is written out.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if model._is_stateful or kinds != {"full_attention"}:
        raise ValueError(
            f"`num_unmasked` ({prefix}) needs softmax attention in all layers, which {type(model).__name__} has not: "
            "set it to 0, or choose another prior."
        )
    if model.config._attn_implementation not in ("eager", "sdpa", None):
        raise ValueError(
            f"`num_unmasked` ({prefix}) needs a mask that {model.config._attn_implementation!r} does not take: choose "
            "attn_implementation='sdpa'."
        )
    model.register_forward_pre_hook(PrefixMask(prefix), with_kwargs=True)
