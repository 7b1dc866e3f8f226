"""UniLM: Dong et al. 2019, Unified Language Model Pre-training (arXiv:1905.03197). One model encodes and writes.

    c = cumsum(token types),   token i sees token j where c_j <= c_i

A prompt of type 0 sees itself in both directions; what is written after it is of type 1 and sees what precedes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from .language_model import LanguageModel

BEGIN = "a UniLM model writes token type 1 after a prompt of type 0"


def default_types(x: Tensor, past: int | Tensor, unilm: bool) -> Tensor:
    """Token types (b t) for x (b t d): 0, but 1 for what a UniLM model appends to `past` tokens."""
    types = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    if not unilm:
        return types
    return types + (past > 0)


def check_types(types: Tensor, past: int | Tensor) -> None:
    """ValueError where a prompt is continued in type 0: its cached tokens could not look back at what is added."""
    if torch.compiler.is_compiling() or not past:
        return
    if bool((types == 0).any()):
        raise ValueError(
            f"{BEGIN}: a prompt cannot be given piece by piece, so `token_type_ids` after a cache must be 1."
        )


class UniLMGeneration(LanguageModel):
    """generate() and the loss of a causal language model whose configuration may say `unilm`."""

    def _prepare_model_inputs(self, inputs=None, bos_token_id=None, model_kwargs=None):
        inputs, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)  # pyright: ignore
        if self.config.unilm:
            types = model_kwargs.pop("token_type_ids", None)
            cache = model_kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            if types is None:
                types = torch.zeros(inputs.shape[:2], dtype=torch.int64, device=inputs.device)
                types[:, past:] = int(past > 0)
            # Beside embeddings alone, generate() counts as ids only what it writes.
            ids = model_kwargs.get("input_ids")
            only_embeds = name == "inputs_embeds" and (ids is None or ids.shape[1] == 0)
            model_kwargs |= {"prompt_types": types, "ids_begin_at": types.shape[1] if only_embeds else 0}
        return inputs, name, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args,
        inputs_embeds: Tensor | None = None,  # these two are named, since generate() looks for them here
        token_type_ids: Tensor | None = None,
        prompt_types: Tensor | None = None,
        ids_begin_at: int = 0,
        **kwargs,
    ):
        if prompt_types is not None:
            length = ids_begin_at + input_ids.shape[1] - prompt_types.shape[1]
            written = prompt_types.new_ones(prompt_types.shape[0], max(length, 0))
            token_type_ids = torch.cat((prompt_types, written), dim=1)
        return super().prepare_inputs_for_generation(  # pyright: ignore
            input_ids, *args, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, **kwargs
        )

    def create_masks_for_generate(
        self,
        config: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> Any:
        """The masks that generate() makes for a static cache, by what this model sees."""
        masks = create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if isinstance(masks, dict) and (config.unilm or self.model.sees_keys):
            layout = self.model.find_layout(inputs_embeds, attention_mask, position_ids, past_key_values)
            masks["full_attention"] = self.model.make_visibility(
                inputs_embeds, attention_mask, past_key_values, layout, token_type_ids=token_type_ids
            )
        return masks

    def targets(
        self,
        labels: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Labels at the tokens that predict them; with `unilm` those of type 1 alone: a prompt sees all of itself."""
        if self.config.unilm:
            if token_type_ids is None:
                raise ValueError(f"{BEGIN}: give `token_type_ids` beside `labels`, only labels of type 1 are learned.")
            labels = labels.masked_fill(token_type_ids == 0, -100)
        return super().targets(labels, attention_mask, position_ids, **kwargs)  # pyright: ignore
