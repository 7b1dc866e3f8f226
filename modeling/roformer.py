"""RoFormer: Su et al. 2021, Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864)."""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.roformer import NoriaRoFormerConfig
from .activation import activation
from .backbone import Backbone, NoriaPreTrainedModel
from .block import MixerBlock, PostNormBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .feedforward import MLP
from .mixers.softmax_attention import ScoredValues, SoftmaxAttention
from .position.rotary import Rotary
from .state import Context


class RoFormerBlock(PostNormBlock):
    mlp_class = MLP
    norm_class = nn.LayerNorm

    def make_mixer(self, config, layer: int) -> nn.Module:
        return SoftmaxAttention(config, Rotary(config.head_dim, config.rotary_base))


class RoFormerPreTrainedModel(NoriaPreTrainedModel):
    config: NoriaRoFormerConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MixerBlock, "attentions": ScoredValues}


class NoriaRoFormerModel(RoFormerPreTrainedModel, Backbone):
    """Word and token-type embeddings, their norm, and post-norm blocks; no position is added to the embeddings."""

    block_class = RoFormerBlock
    norm_class = None
    _no_split_modules = ["RoFormerBlock"]

    def make_embeddings(self, config: NoriaRoFormerConfig) -> None:
        super().make_embeddings(config)
        self.embed_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embed_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.embed_dropout = nn.Dropout(config.dropout)

    def embed(self, x: Tensor, context: Context, token_type_ids: Tensor | None = None, **kwargs) -> Tensor:
        """token_type_ids (b t), all 0 where not given."""
        if token_type_ids is None:
            token_type_ids = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        return self.embed_dropout(self.embed_norm(x + self.embed_types(token_type_ids)))


class RoFormerHead(nn.Module):
    """BERT's head: norm(act(W x + b)) E^T + bias."""

    def __init__(self, config: NoriaRoFormerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.act(self.transform(x))))


class NoriaRoFormerForCausalLM(RoFormerPreTrainedModel, DecoderForCausalLM, GenerationMixin):
    model_class = NoriaRoFormerModel
    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def make_head(self, config: NoriaRoFormerConfig) -> nn.Module:
        return RoFormerHead(config)

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head.decoder = new_embeddings


class NoriaRoFormerForSequenceClassification(RoFormerPreTrainedModel, DecoderForSequenceClassification):
    model_class = NoriaRoFormerModel


__all__ = ["NoriaRoFormerForCausalLM", "NoriaRoFormerForSequenceClassification", "NoriaRoFormerModel"]
