"""Mamba: Gu and Dao 2023, Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752)."""

from transformers import GenerationMixin

from ..configuration.mamba import NoriaMambaConfig
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .encoder import EncoderForMaskedLM, EncoderForTokenClassification
from .mixers.mamba import SelectiveSSM
from .selective import SelectiveBackbone, SelectiveBlock


class MambaBlock(SelectiveBlock):
    mixer_class = SelectiveSSM


class NoriaMambaModel(SelectiveBackbone):
    config: NoriaMambaConfig
    block_class = MambaBlock
    _no_split_modules = ["MambaBlock"]


class NoriaMambaForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaMambaConfig
    model_class = NoriaMambaModel


class NoriaMambaForMaskedLM(EncoderForMaskedLM):
    config: NoriaMambaConfig
    model_class = NoriaMambaModel


class NoriaMambaForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaMambaConfig
    model_class = NoriaMambaModel


class NoriaMambaForTokenClassification(EncoderForTokenClassification):
    config: NoriaMambaConfig
    model_class = NoriaMambaModel


__all__ = [
    "NoriaMambaForCausalLM",
    "NoriaMambaForMaskedLM",
    "NoriaMambaForSequenceClassification",
    "NoriaMambaForTokenClassification",
    "NoriaMambaModel",
]
