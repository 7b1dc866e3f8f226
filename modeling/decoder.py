"""Heads on a causal trunk: language modelling with generate(), and classification of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from ..configuration.decoder import DecoderConfig
from .backbone import Backbone, NoriaPreTrainedModel
from .cache import NoriaCache
from .language_model import LanguageModel
from .layout import first_or_last_real, real_tokens, targets_in_layout
from .ops.held import holding
from .row_linear import row_linears


def last_tokens(x: Tensor, keep: int | Tensor) -> Tensor:
    """x (b t d) at its last `keep` tokens, at all where that is 0, or at the places of a tensor."""
    return x[:, keep] if isinstance(keep, Tensor) else x[:, -keep:]


class DecoderForCausalLM(LanguageModel, GenerationMixin):
    """A causal language model with generate() on the cache of its states."""

    causal = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """input_ids (b t) -> logits (b t v), of the last `logits_to_keep` tokens if told so, and the loss of labels.

        A label is predicted by the real token before it in the same sequence, across padding; -100 is left out.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(last_tokens(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            if "shift_labels" not in kwargs:
                kwargs["shift_labels"] = self.targets(labels, attention_mask, position_ids, **kwargs)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def targets(self, labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs) -> Tensor:
        """Labels at the tokens that predict them: one to the left, across padding, never across packed sequences."""
        if attention_mask is not None and attention_mask.shape[-1] != labels.shape[-1]:
            attention_mask = attention_mask[..., -labels.shape[-1] :]
        layout = self.model.find_layout(labels[..., None], attention_mask, position_ids, None, **kwargs)
        return targets_in_layout(labels, layout)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return True  # transformers decides by class names that contain "rwkv" and the like

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """Our own cache where a dynamic one is wanted, under one name for all architectures.

        transformers calls the cache of any class whose name contains "mamba" `cache_params`.
        """
        dynamic = generation_config.cache_implementation in (None, "dynamic")
        if dynamic and generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            cache = model_kwargs["past_key_values"] = NoriaCache(self.config)
            if generation_config.is_assistant:
                cache.activate_past_recording()
            return
        if model_kwargs.get("past_key_values") is not None and generation_config.cache_implementation is None:
            model_kwargs["past_key_values"]._is_user_defined = True
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore
        if "cache_params" in model_kwargs:
            model_kwargs["past_key_values"] = model_kwargs.pop("cache_params")

    @contextmanager
    def _optimize_model_for_decode(self) -> Iterator[None]:
        """generate() decodes inside this block."""
        with super()._optimize_model_for_decode(), row_linears(self), holding(self):  # pyright: ignore
            yield


class DecoderForSequenceClassification(NoriaPreTrainedModel):
    """A backbone of `model_class` and a linear head on the last real token of each row."""

    model_class: type[Backbone]

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.num_labels: Any = config.num_labels
        self.model = self.model_class(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """input_ids (b t) -> logits (b num_labels) and the loss of labels (b), wherever the padding stands.

        The last real token is known from attention_mask, else from `pad_token_id`, else it is the last of the row.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.last_real(outputs.last_hidden_state, input_ids, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def last_real(self, x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """The hidden state (b d) of each row's last real token."""
        real = real_tokens(x, input_ids, attention_mask, self.config.pad_token_id)
        return first_or_last_real(x, real, last=True)
