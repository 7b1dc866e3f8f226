"""Mamba: Gu and Dao 2023, Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752)."""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.mamba import NoriaMambaConfig
from .backbone import Backbone
from .block import MixerBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .encoder import EncoderForMaskedLM, EncoderForTokenClassification
from .mixers.mamba import SelectiveSSM
from .state import Context
from .wide_norm import WIDE_NORMS


class MambaBlock(MixerBlock):
    mixer_class = SelectiveSSM

    def make_norm(self, config: NoriaMambaConfig) -> nn.Module:
        return WIDE_NORMS[config.norm](config.hidden_size, eps=config.norm_eps)


class NoriaMambaModel(Backbone):
    config: NoriaMambaConfig
    block_class = MambaBlock
    _no_split_modules = ["MambaBlock"]
    _keep_in_fp32_modules_strict = ["mixer.A_log", "mixer.D", "mixer.dt_bias"]

    def make_norm(self, config: NoriaMambaConfig) -> nn.Module:
        return WIDE_NORMS[config.norm](config.hidden_size, eps=config.norm_eps)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x


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
