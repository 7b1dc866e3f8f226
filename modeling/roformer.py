"""RoFormer: Su et al. 2021, Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864)."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.roformer import NoriaRoFormerConfig
from .activation import activation
from .backbone import Backbone, NoriaPreTrainedModel
from .block import MixerBlock, PostNormBlock
from .decoder import DecoderForCausalLM
from .encoder import (
    EncoderForMaskedLM,
    EncoderForMultipleChoice,
    EncoderForQuestionAnswering,
    EncoderForSequenceClassification,
    EncoderForTokenClassification,
)
from .feedforward import MLP
from .layout import Layout, find_key_positions, first_or_last_real
from .mask_decoder import EnhancedMaskDecoder
from .mixers.linear_attention import LinearMixer
from .mixers.softmax_attention import ScoredValues, SoftmaxAttention
from .norm import make_norm
from .position.log_scaling import LogScaling
from .position.table import encoding
from .rope_scaling import scale_rope
from .state import Context
from .unilm import UniLMGeneration, check_types, default_types
from .visibility import is_plain, make_unilm_visibility, make_visibility

MIXERS = {"softmax": SoftmaxAttention, "linear": LinearMixer}


class RoFormerBlock(PostNormBlock):
    def make_mixer(self, config: NoriaRoFormerConfig, layer: int) -> nn.Module:
        position = scale_rope(encoding(config.position_encoding).layer(config), config)
        position = LogScaling(position) if config.log_scaling else position
        return MIXERS[config.attention](config, position, bias=config.use_bias)

    def make_norm(self, config: NoriaRoFormerConfig) -> nn.Module:
        return make_norm(config.norm_type, config.hidden_size, config.norm_eps)

    def make_mlp(self, config: NoriaRoFormerConfig) -> nn.Module:
        return MLP(config, bias=config.use_bias)


class RoFormerPreTrainedModel(NoriaPreTrainedModel):
    config: NoriaRoFormerConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MixerBlock, "attentions": OutputRecorder(ScoredValues, 1, "layers")}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if self.config.version == 2 and isinstance(module, nn.Linear | nn.Embedding):
            # fan_in^(-1/2) L^(-1/2), drawn within two deviations: 1.1368 makes up for the tails that are cut.
            std = 1.13684723 * (module.weight.shape[1] * max(self.config.num_hidden_layers, 1)) ** -0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Sentences input_ids (b t) -> unit vectors (b d): what the pooler makes of the first token, over its length.

        Their products are cosines. Raises ValueError where the configuration has no pooler.
        """
        if self.config.pooler == "none":
            raise ValueError("this model has no pooler to encode sentences with: RoFormer-Sim has pooler='linear'.")
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "use_cache": False} | kwargs
        return F.normalize(self.base_model(input_ids, **inputs).pooler_output, dim=-1)


@dataclass
class RoFormerOutput(BaseModelOutputWithPoolingAndCrossAttentions):
    """decoded (b t d): what the enhanced mask decoder, if there is one, makes of last_hidden_state."""

    decoded: Tensor | None = None


class Pooler(nn.Module):
    """W x + b of a row's first token x (b d), through tanh where BERT has it."""

    def __init__(self, config: NoriaRoFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation({"linear": "identity", "tanh": "tanh"}[config.pooler])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class NoriaRoFormerModel(RoFormerPreTrainedModel, Backbone):
    """Word and token-type embeddings, their norm, and post-norm blocks; `pooler_output` (b d) if there is a pooler."""

    layers: Any  # a ModuleList of RoFormerBlocks
    block_class = RoFormerBlock
    norm_class = None
    _no_split_modules = ["RoFormerBlock"]

    def __init__(self, config: NoriaRoFormerConfig) -> None:
        super().__init__(config)
        self.pooler = None if config.pooler == "none" else Pooler(config)
        self.mask_decoder = None  # the masked language model's, if it has one
        self.post_init()

    def make_embeddings(self, config: NoriaRoFormerConfig) -> None:
        width = config.embedding_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id) if config.vocab_size else None
        self.embed_types = nn.Embedding(config.type_vocab_size, width)
        self.position = encoding(config.position_encoding).model(config)
        self.embed_norm = make_norm(config.norm_type, width, config.norm_eps)
        self.embed_dropout = nn.Dropout(config.dropout)
        mapped = width != config.hidden_size
        self.embed_project = nn.Linear(width, config.hidden_size, config.use_bias) if mapped else nn.Identity()

    def make_context(
        self,
        x: Tensor,
        attention_mask: Tensor | dict | None,
        cache: Cache | None,
        layout: Layout,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> Context:
        past = 0 if cache is None else cache.get_seq_length()
        types = default_types(x, past, self.config.unilm) if token_type_ids is None else token_type_ids
        if self.config.unilm:
            check_types(types, past)
        context = super().make_context(x, attention_mask, cache, layout, token_type_ids=types, **kwargs)
        context.shared["token_type_ids"] = types
        if self.sees_keys:
            keys = x.shape[1] if cache is None else cache.get_mask_sizes(x.shape[1], 0)[0]
            known = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
            prepared = context.visibility if isinstance(attention_mask, dict) else None
            context.key_positions = find_key_positions(layout, known, past, keys, x.shape[0], prepared)
        return context

    def make_visibility(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        layout: Layout,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> Any:
        if self.sees_keys and not is_plain(self.config):
            raise ValueError(
                f"position_encoding={self.config.position_encoding!r} works on scores, which "
                f"{self.config._attn_implementation!r} does not show: choose attn_implementation='sdpa'."
            )
        ready = attention_mask is not None and attention_mask.dim() == 4
        if self.config.unilm and not ready and token_type_ids is not None:
            if cache is None or cache.get_seq_length() == 0:
                return make_unilm_visibility(self.config, x, token_type_ids, cache, layout)
            return make_visibility(self.config, x, attention_mask, cache, layout, True, self.sees_keys)
        return make_visibility(self.config, x, attention_mask, cache, layout, self.causal, self.sees_keys)

    @property
    def sees_keys(self) -> bool:
        return self.config.attention == "softmax" and any(layer.mixer.position.sees_keys for layer in self.layers)

    def embed(self, x: Tensor, context: Context, input_ids: Tensor | None = None, **kwargs) -> Tensor:
        """token_type_ids (b t): all 0 where not given, but 1 in a UniLM model that continues a cache."""
        x = self.position.add(x + self.embed_types(context.shared["token_type_ids"]), context, input_ids)
        if self.config.version == 1:
            x = self.embed_dropout(self.embed_norm(x))
        else:
            x = self.embed_norm(self.embed_dropout(x))
        context.position = self.position.share(x, context)
        return self.embed_project(x)

    def make_output(self, x: Tensor, context: Context, cache: Cache | None):
        decoded = None if self.mask_decoder is None else self.mask_decoder(x, context)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(first_or_last_real(x, context.mask, last=False))
        return RoFormerOutput(last_hidden_state=x, pooler_output=pooled, past_key_values=cache, decoded=decoded)


class RoFormerHead(nn.Module):
    """BERT's: norm(act(W x + b)) E^T + bias, or x E^T alone."""

    def __init__(self, config: NoriaRoFormerConfig) -> None:
        super().__init__()
        self.transform = None
        if config.head_transform:
            self.transform = nn.Linear(config.hidden_size, config.embedding_size)
            self.act = activation(config.hidden_act)
            self.norm = make_norm(config.norm_type, config.embedding_size, config.norm_eps)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size, bias=config.head_transform)

    def forward(self, x: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.norm(self.act(self.transform(x)))
        return self.decoder(x)


class RoFormerLanguageModel(RoFormerPreTrainedModel):
    """What the masked and the causal language model share: the trunk and the head."""

    model_class = NoriaRoFormerModel
    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def make_head(self, config: NoriaRoFormerConfig) -> nn.Module:
        return RoFormerHead(config)

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head.decoder = new_embeddings


class NoriaRoFormerForCausalLM(RoFormerLanguageModel, UniLMGeneration, DecoderForCausalLM, GenerationMixin):
    """Reads from left to right; with `unilm` a prompt of token type 0 in both directions, and writes type 1."""


class NoriaRoFormerForMaskedLM(RoFormerLanguageModel, EncoderForMaskedLM):
    """Fills in masked tokens; with `enhanced_mask_decoder` from hidden states decoded with absolute positions."""

    def __init__(self, config: NoriaRoFormerConfig) -> None:
        super().__init__(config)
        if config.enhanced_mask_decoder:
            self.model.mask_decoder = EnhancedMaskDecoder(config, RoFormerBlock(config, config.num_hidden_layers))
            self.post_init()

    def decoded(self, outputs) -> Tensor:
        return outputs.last_hidden_state if outputs.decoded is None else outputs.decoded


class NoriaRoFormerForSequenceClassification(RoFormerPreTrainedModel, EncoderForSequenceClassification):
    model_class = NoriaRoFormerModel


class NoriaRoFormerForTokenClassification(RoFormerPreTrainedModel, EncoderForTokenClassification):
    model_class = NoriaRoFormerModel


class NoriaRoFormerForQuestionAnswering(RoFormerPreTrainedModel, EncoderForQuestionAnswering):
    model_class = NoriaRoFormerModel


class NoriaRoFormerForMultipleChoice(RoFormerPreTrainedModel, EncoderForMultipleChoice):
    model_class = NoriaRoFormerModel


__all__ = [
    "NoriaRoFormerForCausalLM",
    "NoriaRoFormerForMaskedLM",
    "NoriaRoFormerForMultipleChoice",
    "NoriaRoFormerForQuestionAnswering",
    "NoriaRoFormerForSequenceClassification",
    "NoriaRoFormerForTokenClassification",
    "NoriaRoFormerModel",
]
