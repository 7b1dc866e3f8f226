"""Linear transformer: Katharopoulos et al. 2020, Transformers are RNNs (arXiv:2006.16236)."""

from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.linear_transformer import NoriaLinearTransformerConfig
from .backbone import Backbone
from .block import PostNormBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .encoder import EncoderForMaskedLM
from .feedforward import MLP
from .mixers.linear_attention import LinearMixer
from .position.base import PositionEncoding
from .position.rotary import Rotary
from .position.sinusoidal import Sinusoidal
from .state import Context


class LinearTransformerBlock(PostNormBlock):
    mlp_class = MLP
    norm_class = nn.LayerNorm

    def make_mixer(self, config: NoriaLinearTransformerConfig, layer: int) -> nn.Module:
        rotates = config.rotary != "none"
        return LinearMixer(config, Rotary(config.head_dim, config.rotary_base) if rotates else PositionEncoding())


class NoriaLinearTransformerModel(Backbone):
    config: NoriaLinearTransformerConfig
    block_class = LinearTransformerBlock
    norm_class = nn.LayerNorm
    _no_split_modules = ["LinearTransformerBlock"]

    def make_embeddings(self, config: NoriaLinearTransformerConfig) -> None:
        super().make_embeddings(config)
        adds = config.position_encoding == "sinusoidal"
        self.position = Sinusoidal(config.hidden_size) if adds else PositionEncoding()

    def make_norm(self, config: NoriaLinearTransformerConfig) -> nn.Module:
        return super().make_norm(config) if config.final_norm else nn.Identity()

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        x = x * self.config.hidden_size**0.5 if self.config.scale_embedding else x
        return self.position.add(x, context)


class NoriaLinearTransformerForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaLinearTransformerConfig
    model_class = NoriaLinearTransformerModel


class NoriaLinearTransformerForMaskedLM(EncoderForMaskedLM):
    config: NoriaLinearTransformerConfig
    model_class = NoriaLinearTransformerModel


class NoriaLinearTransformerForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaLinearTransformerConfig
    model_class = NoriaLinearTransformerModel


__all__ = [
    "NoriaLinearTransformerForCausalLM",
    "NoriaLinearTransformerForMaskedLM",
    "NoriaLinearTransformerForSequenceClassification",
    "NoriaLinearTransformerModel",
]
