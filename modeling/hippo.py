"""HiPPO-RNN: Gu et al. 2020, Recurrent Memory with Optimal Polynomial Projections (arXiv:2008.07669)."""

from transformers import GenerationMixin

from ..configuration.hippo import NoriaHiPPOConfig
from .backbone import Backbone
from .block import MixerBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .mixers.hippo import HippoCell


class HiPPOBlock(MixerBlock):
    mixer_class = HippoCell


class NoriaHiPPOModel(Backbone):
    config: NoriaHiPPOConfig
    block_class = HiPPOBlock
    _no_split_modules = ["HiPPOBlock"]


class NoriaHiPPOForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaHiPPOConfig
    model_class = NoriaHiPPOModel


class NoriaHiPPOForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaHiPPOConfig
    model_class = NoriaHiPPOModel


__all__ = ["NoriaHiPPOForCausalLM", "NoriaHiPPOForSequenceClassification", "NoriaHiPPOModel"]
