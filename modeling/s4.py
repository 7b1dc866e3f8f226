"""S4: Gu et al. 2021 (arXiv:2111.00396), with the diagonal kernels that followed it."""

from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.s4 import NoriaS4Config
from .backbone import Backbone
from .block import MixerBlock
from .decoder import DecoderForCausalLM
from .mixers.s4 import S4
from .pooled_classifier import PooledForSequenceClassification
from .state import Context, State


class S4Block(MixerBlock):
    mixer_class = S4
    norm_class = nn.LayerNorm


class BareS4Block(S4Block):
    """The layer alone, without norm and residual sum."""

    def make_norm(self, config) -> nn.Module:
        return nn.Identity()

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        return self.mixer(x, context, state)


class NoriaS4Model(Backbone):
    config: NoriaS4Config
    norm_class = nn.LayerNorm
    _no_split_modules = ["S4Block", "BareS4Block"]
    _keep_in_fp32_modules_strict = ["kernel"]

    def make_block(self, layer: int) -> MixerBlock:
        return (BareS4Block if self.config.bare else S4Block)(self.config, layer)

    def make_norm(self, config: NoriaS4Config) -> nn.Module:
        return nn.Identity() if config.bare else super().make_norm(config)


class NoriaS4ForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaS4Config
    model_class = NoriaS4Model


class NoriaS4ForSequenceClassification(PooledForSequenceClassification):
    config: NoriaS4Config
    model_class = NoriaS4Model


__all__ = ["NoriaS4ForCausalLM", "NoriaS4ForSequenceClassification", "NoriaS4Model"]
