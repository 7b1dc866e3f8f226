"""RetNet: Sun et al. 2023, Retentive Network (arXiv:2307.08621)."""

from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.retnet import NoriaRetNetConfig
from .backbone import Backbone
from .block import MixerBlock, PostNormBlock, PreNormBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .mixers.retention import Retention
from .state import Context


class ScaledResidual:
    """scale x + y (DeepNorm, arXiv:2203.00555, eq. 1), beside a block: transformers breaks diamonds of layers."""

    residual_scale = 1.0
    dropout: nn.Module

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        return (x if self.residual_scale == 1 else x * self.residual_scale) + self.dropout(y)


class RetNetBlock(ScaledResidual, PreNormBlock):
    mixer_class = Retention


class RetNetPostNormBlock(ScaledResidual, PostNormBlock):
    mixer_class = Retention


class NoriaRetNetModel(Backbone):
    config: NoriaRetNetConfig
    block_class = RetNetBlock
    _no_split_modules = ["RetNetBlock", "RetNetPostNormBlock"]

    def make_embeddings(self, config: NoriaRetNetConfig) -> None:
        super().make_embeddings(config)
        if config.embedding_norm:
            self.embedding_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def make_block(self, layer: int) -> MixerBlock:
        block = (RetNetPostNormBlock if self.config.post_norm else RetNetBlock)(self.config, layer)
        block.residual_scale = self.config.residual_scale
        return block

    def make_norm(self, config: NoriaRetNetConfig) -> nn.Module:
        return nn.Identity() if config.post_norm else super().make_norm(config)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        x = x * self.config.hidden_size**0.5 if self.config.scale_embedding else x
        return self.embedding_norm(x) if self.config.embedding_norm else x


class NoriaRetNetForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaRetNetConfig
    model_class = NoriaRetNetModel


class NoriaRetNetForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaRetNetConfig
    model_class = NoriaRetNetModel


__all__ = ["NoriaRetNetForCausalLM", "NoriaRetNetForSequenceClassification", "NoriaRetNetModel"]
