"""Heads of encoders: masked language modelling, classification of sequences and tokens, spans, choices."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from ..configuration.decoder import DecoderConfig
from .activation import activation
from .backbone import Backbone, NoriaPreTrainedModel
from .language_model import LanguageModel
from .layout import first_or_last_real, real_tokens


class EncoderForMaskedLM(LanguageModel):
    """A language model in which every token sees all others."""

    causal = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """input_ids (b t) -> logits (b t v) and the loss of labels (b t), where -100 is left out."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs | {"use_cache": False},
        )
        logits = self.lm_head(self.decoded(outputs))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def decoded(self, outputs) -> Tensor:
        """The hidden states (b t d) that the head reads."""
        return outputs.last_hidden_state


class EncoderHead(NoriaPreTrainedModel):
    """A trunk of `model_class`, dropout and whatever `make_classifier` makes."""

    model_class: type[Backbone]

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.num_labels: Any = config.num_labels
        self.model = self.model_class(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.make_classifier(config)
        self.post_init()

    def make_classifier(self, config: DecoderConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, self.num_labels)

    def read(self, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs):
        """The trunk's outputs, without a cache."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs | {"use_cache": False})

    def pooled(self, x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """The hidden state (b d) of each row's first real token, or of its last where the trunk is causal.

        Real tokens are known from attention_mask, else from `pad_token_id`, else all are.
        """
        real = real_tokens(x, input_ids, attention_mask, self.config.pad_token_id)
        return first_or_last_real(x, real, last=self.model.causal)


class PooledHead(nn.Module):
    """BERT's: W_out dropout(act(W dropout(x))), x (b d) being what one token became; act is tanh unless told."""

    def __init__(self, config: DecoderConfig, num_labels: int) -> None:
        super().__init__()
        self.act = activation(getattr(config, "classifier_act", "tanh"))
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(config.hidden_size, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(self.act(self.dense(self.dropout(x)))))


class EncoderForSequenceClassification(EncoderHead):
    def make_classifier(self, config: DecoderConfig) -> nn.Module:
        return PooledHead(config, self.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """input_ids (b t) -> logits (b num_labels) and the loss of labels (b)."""
        outputs = self.read(input_ids, attention_mask, **kwargs)
        logits = self.classifier(self.pooled(outputs.last_hidden_state, input_ids, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EncoderForTokenClassification(EncoderHead):
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """input_ids (b t) -> logits (b t num_labels) and the loss of labels (b t), where -100 is left out."""
        outputs = self.read(input_ids, attention_mask, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = self.loss_function(logits, labels, self.config) if labels is not None else None
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EncoderForQuestionAnswering(EncoderHead):
    def make_classifier(self, config: DecoderConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """input_ids (b t) -> start_logits, end_logits (b t) and the loss of the two positions (b).

        A position outside the row is left out of the loss. Raises ValueError where only one of them is given.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both `start_positions` and `end_positions`, or neither.")
        outputs = self.read(input_ids, attention_mask, **kwargs)
        start, end = self.classifier(outputs.last_hidden_state).unbind(-1)
        loss = self.loss_function(start, end, start_positions, end_positions) if start_positions is not None else None
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EncoderForMultipleChoice(EncoderHead):
    def make_classifier(self, config: DecoderConfig) -> nn.Module:
        return PooledHead(config, 1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """input_ids (b choices t) -> logits (b choices) and the loss of labels (b), the number of the right choice."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or given.dim() != (3 if input_ids is not None else 4):
            raise ValueError("multiple choice takes `input_ids` (b choices t) or `inputs_embeds` (b choices t d).")
        batch, choices = given.shape[:2]
        for name in ("token_type_ids", "position_ids"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].flatten(0, 1)
        ids, mask, embeds = (
            None if x is None else x.flatten(0, 1) for x in (input_ids, attention_mask, inputs_embeds)
        )
        outputs = self.read(ids, mask, inputs_embeds=embeds, **kwargs)
        logits = self.classifier(self.pooled(outputs.last_hidden_state, ids, mask)).view(batch, choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
