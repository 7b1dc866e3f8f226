"""The trunk that every architecture shares: embed, blocks, norm. It names no mixer and asks for no architecture.

A subclass names its parts as class attributes; `decoder.py` and `encoder.py` put heads on it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.decoder import RECURRENT_LAYER_TYPE, DecoderConfig
from .block import MixerBlock
from .cache import NoriaCache, adopt, held_rows
from .cells import cells
from .checked_files import CheckedFiles
from .layout import Layout, find_layout
from .state import Context
from .visibility import choose_attention, make_visibility

logger = logging.get_logger(__name__)


class NoriaPreTrainedModel(CheckedFiles):
    config: DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _can_compile_fullgraph = True
    _is_stateful = False  # rollback is exact, so assisted decoding is allowed
    _can_record_outputs = {"hidden_states": MixerBlock}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize = getattr(module, "initialize", None)
        if initialize is not None:
            initialize(self.config.initializer_range)


class Backbone(NoriaPreTrainedModel):
    """Embeddings, `num_hidden_layers` blocks of `block_class`, and a last norm of `norm_class` (None for no norm).

    causal (bool): whether a token sees only what precedes it; heads decide it, else the configuration.
    """

    block_class: type[MixerBlock]
    norm_class: type[nn.Module] | None = nn.RMSNorm

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.causal = not getattr(config, "bidirectional", False)
        self.make_embeddings(config)
        self.layers = nn.ModuleList(self.make_block(layer) for layer in range(config.num_hidden_layers))
        self.norm = self.make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def make_embeddings(self, config: DecoderConfig) -> None:
        self.embed_tokens = None
        if config.vocab_size:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)

    def make_block(self, layer: int) -> MixerBlock:
        """Every layer alike; a hybrid architecture overrides this."""
        return self.block_class(self.config, layer)

    def make_norm(self, config: DecoderConfig) -> nn.Module:
        return nn.Identity() if self.norm_class is None else self.norm_class(config.hidden_size, eps=config.norm_eps)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        """What becomes of the token embeddings x (b t d) before the first block."""
        return x

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids (b t) or inputs_embeds (b t d) -> last_hidden_state (b t d).

        attention_mask (b past+t), or boolean / additive 4-D for softmax attention; position_ids (b t), restarting at 0
        at packed sequences; past_key_values: a cache, continued and returned; cu_seq_lens_q, seq_idx: packing as
        transformers' collators state it. Raises ValueError for inputs that do not fit one another.
        """
        x = self.embed_inputs(input_ids, inputs_embeds)
        cache = self.open_cache(past_key_values, use_cache, x)
        layout = self.find_layout(x, attention_mask, position_ids, cache, **kwargs)
        cache = self.uncached_if_packed(cache, past_key_values, layout)
        context = self.make_context(x, attention_mask, cache, layout, **kwargs)
        x = self.embed(x, context, input_ids=input_ids, **kwargs)
        for block, cell in zip(self.layers, cells(cache, len(self.layers)), strict=True):
            inputs = x
            x, state = block(inputs, context, cell.read(block, inputs))
            cell.write(state, inputs, context)
        if hasattr(cache, "positions"):  # no isinstance: the cache may come from a flat copy of this code
            cache.positions = layout.positions[:, -1] + 1  # pyright: ignore
        return self.make_output(self.norm(x), context, cache)

    def make_output(self, x: Tensor, context: Context, cache: Cache | None) -> BaseModelOutputWithPast:
        """What the last hidden states x (b t d) are returned in."""
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache)

    def embed_inputs(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is not None:
            return inputs_embeds
        if self.embed_tokens is None:
            raise ValueError("this model has no embedding (`vocab_size` is 0): give `inputs_embeds` of shape (b t d).")
        return self.embed_tokens(input_ids)

    def open_cache(self, cache: Cache | None, use_cache: bool | None, x: Tensor) -> Cache | None:
        if cache is None:
            return NoriaCache(self.config) if use_cache and self.causal else None
        if not self.causal:
            raise ValueError("a bidirectional model cannot continue a cache: every token sees all others.")
        adopt(cache, self.config)
        rows = held_rows(cache)
        if rows is not None and rows != x.shape[0]:
            raise ValueError(f"the cache holds {rows} rows, but the input has {x.shape[0]}.")
        if self.gradient_checkpointing and self.training:
            self.check_checkpointing()
        return cache

    def check_checkpointing(self) -> None:
        """A checkpointed block runs twice, and the reentrant kind follows gradients through x alone."""
        if self.grows:
            raise ValueError(
                "gradient checkpointing would write keys twice into a cache: leave out `past_key_values`."
            )
        options = getattr(self.layers[0]._gradient_checkpointing_func, "keywords", {}) if len(self.layers) else {}
        if options.get("use_reentrant"):
            raise ValueError("a carried state keeps its gradient only with `use_reentrant=False` in checkpointing.")

    def find_layout(
        self,
        x: Tensor,
        attention_mask: Tensor | dict | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **kwargs,
    ) -> Layout:
        """Positions, padding and packing of the new tokens x (b t d)."""
        padding = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() != 4 else None
        prepared = attention_mask.get(RECURRENT_LAYER_TYPE) if isinstance(attention_mask, dict) else None
        return find_layout(
            x.shape[0],
            x.shape[1],
            x.device,
            attention_mask=padding,
            position_ids=position_ids,
            past=0 if cache is None else cache.get_seq_length(),
            next_positions=getattr(cache, "positions", None),
            cu_seq_lens=cu_seq_lens_q,
            seq_idx=seq_idx,
            packs=not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 4),
            mask=None if prepared is None else prepared.bool(),
        )

    def uncached_if_packed(self, cache: Cache | None, given: Cache | None, layout: Layout) -> Cache | None:
        """Softmax attention cannot tell packed sequences apart in a cache: none is made for them unasked."""
        if cache is not None and given is None and layout.segments is not None and self.grows:
            logger.warning_once("Packed sequences are not cached by softmax attention: no cache is returned.")
            return None
        return cache

    @property
    def grows(self) -> bool:
        return any(kind != RECURRENT_LAYER_TYPE for kind in self.config.layer_types)

    def make_context(
        self, x: Tensor, attention_mask: Tensor | dict | None, cache: Cache | None, layout: Layout, **kwargs
    ) -> Context:
        visibility = attention = None
        if self.grows:
            attention = choose_attention(self.config, layout)
            if isinstance(attention_mask, dict):
                visibility = attention_mask.get("full_attention")
            else:
                visibility = self.make_visibility(x, attention_mask, cache, layout, **kwargs)
        elif isinstance(attention_mask, Tensor) and attention_mask.dim() == 4:
            raise ValueError("a 4-D `attention_mask` says what softmax attention sees: this model has none, give 2-D.")
        return Context(*layout, visibility, attention, causal=self.causal, keep_state=cache is not None)

    def make_visibility(
        self, x: Tensor, attention_mask: Tensor | None, cache: Cache | None, layout: Layout, **kwargs
    ) -> Any:
        """What softmax attention may see of x (b t d) and the cached keys."""
        return make_visibility(self.config, x, attention_mask, cache, layout, self.causal)
