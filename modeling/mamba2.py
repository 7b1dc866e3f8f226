"""Mamba-2: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060)."""

from transformers import GenerationMixin

from ..configuration.mamba2 import NoriaMamba2Config
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .encoder import EncoderForMaskedLM, EncoderForTokenClassification
from .mixers.mamba2 import DualSSM
from .selective import SelectiveBackbone, SelectiveBlock


class Mamba2Block(SelectiveBlock):
    mixer_class = DualSSM


class NoriaMamba2Model(SelectiveBackbone):
    config: NoriaMamba2Config
    block_class = Mamba2Block
    _no_split_modules = ["Mamba2Block"]


class NoriaMamba2ForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaMamba2Config
    model_class = NoriaMamba2Model


class NoriaMamba2ForMaskedLM(EncoderForMaskedLM):
    config: NoriaMamba2Config
    model_class = NoriaMamba2Model


class NoriaMamba2ForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaMamba2Config
    model_class = NoriaMamba2Model


class NoriaMamba2ForTokenClassification(EncoderForTokenClassification):
    config: NoriaMamba2Config
    model_class = NoriaMamba2Model


__all__ = [
    "NoriaMamba2ForCausalLM",
    "NoriaMamba2ForMaskedLM",
    "NoriaMamba2ForSequenceClassification",
    "NoriaMamba2ForTokenClassification",
    "NoriaMamba2Model",
]
