"""RetNet: Sun et al. 2023, Retentive Network (arXiv:2307.08621)."""

from torch import Tensor

from ..configuration.retnet import NoriaRetNetConfig
from .backbone import Backbone
from .block import PreNormBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .mixers.retention import Retention
from .state import Context


class RetNetBlock(PreNormBlock):
    mixer_class = Retention


class NoriaRetNetModel(Backbone):
    config: NoriaRetNetConfig
    block_class = RetNetBlock
    _no_split_modules = ["RetNetBlock"]

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return x * self.config.hidden_size**0.5 if self.config.scale_embedding else x


class NoriaRetNetForCausalLM(DecoderForCausalLM):
    config: NoriaRetNetConfig
    model_class = NoriaRetNetModel


class NoriaRetNetForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaRetNetConfig
    model_class = NoriaRetNetModel


__all__ = ["NoriaRetNetForCausalLM", "NoriaRetNetForSequenceClassification", "NoriaRetNetModel"]
