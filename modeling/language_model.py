"""What language models of both directions are: a trunk and a head over the vocabulary."""

from __future__ import annotations

from torch import nn

from ..configuration.decoder import DecoderConfig
from .backbone import Backbone, NoriaPreTrainedModel


class LanguageModel(NoriaPreTrainedModel):
    """A backbone of `model_class` and a linear head; `causal` whatever the configuration says.

    Raises ValueError for a configuration without vocabulary.
    """

    model_class: type[Backbone]
    causal: bool
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        if not config.vocab_size:
            raise ValueError("a language model needs `vocab_size` of at least 1, not 0.")
        self.model = self.model_class(config)
        self.model.causal = self.causal
        self.lm_head = self.make_head(config)
        self.post_init()

    def make_head(self, config: DecoderConfig) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)
