"""Heads on a bidirectional trunk: masked language modelling."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.decoder import DecoderConfig
from .backbone import Backbone, NoriaPreTrainedModel


class EncoderForMaskedLM(NoriaPreTrainedModel):
    """A backbone of `model_class` and a linear head over the vocabulary; always bidirectional."""

    model_class: type[Backbone]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        if not config.vocab_size:
            raise ValueError("a language model needs `vocab_size` of at least 1, not 0.")
        self.model = self.model_class(config)
        self.model.causal = False
        self.lm_head = self.make_head(config)
        self.post_init()

    def make_head(self, config: DecoderConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)

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
            use_cache=False,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
