"""Mamba-2: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060)."""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.mamba2 import NoriaMamba2Config
from .backbone import Backbone
from .block import MixerBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .encoder import EncoderForMaskedLM, EncoderForTokenClassification
from .mixers.mamba2 import DualSSM
from .state import Context
from .wide_norm import WIDE_NORMS


class Mamba2Block(MixerBlock):
    mixer_class = DualSSM

    def make_norm(self, config: NoriaMamba2Config) -> nn.Module:
        return WIDE_NORMS[config.norm](config.hidden_size, eps=config.norm_eps)


class NoriaMamba2Model(Backbone):
    config: NoriaMamba2Config
    block_class = Mamba2Block
    _no_split_modules = ["Mamba2Block"]
    _keep_in_fp32_modules_strict = ["mixer.A_log", "mixer.D", "mixer.dt_bias"]

    def make_norm(self, config: NoriaMamba2Config) -> nn.Module:
        return WIDE_NORMS[config.norm](config.hidden_size, eps=config.norm_eps)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x


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
