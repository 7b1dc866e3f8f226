"""RoFormer: Su et al. 2021, Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .decoder import RECURRENT_LAYER_TYPE, Derived, HeadsConfig

PositionName = Literal[
    "none",
    # added to the embeddings
    "learned",
    "hierarchical",
    "sinusoidal",
    "recursive",
    "floater",
    "multiplicative",
    "complex",
    "convolution",
    # seen by the scores
    "shaw",
    "nezha",
    "transformer_xl",
    "t5",
    "tupe",
    "deberta",
    "alibi",
    # turning queries and keys
    "rotary",
    "rotary_half",
    "rotary_trainable",
    "xpos",
]
# What RoFormerV2 changed (github.com/ZhuiyiTechnology/roformer-v2), and what v1 has.
VERSIONS = {
    1: {"norm_type": "layer_norm", "use_bias": True, "head_transform": True, "hidden_act": "gelu"},
    2: {"norm_type": "rms_norm", "use_bias": False, "head_transform": False, "hidden_act": "relu"},
}


@strict
class NoriaRoFormerConfig(HeadsConfig):
    r"""
    version (`int`): 1, or 2 for RoFormerV2; it sets the defaults of `norm_type`, `use_bias`, `head_transform` and
        `hidden_act`, and v2 draws its initial weights with standard deviation fan_in^(-1/2) num_hidden_layers^(-1/2).
    embedding_size (`int`): width of the embeddings; where it is not `hidden_size`, a linear map follows them.
    hidden_act (`str`): activation of the feed-forward layer and of the head; "gelu" is the exact one.
    norm_type (`str`): "layer_norm", or "rms_norm" without weights.
    use_bias (`bool`): biases in the blocks.
    head_transform (`bool`): the head maps, activates and norms the hidden states before it decodes them.
    type_vocab_size (`int`): number of token types.
    attention_dropout (`float`): dropout of the attention weights while training.
    bidirectional (`bool`): whether the trunk and its classification heads see both directions; `...ForCausalLM` is
        causal and `...ForMaskedLM` bidirectional whatever this says.
    unilm (`bool`): `token_type_ids` tell what is seen: type 0 in both directions, type 1 from left to right
        (arXiv:1905.03197), as in RoFormer-Sim.
    pooler (`str`): what the first token becomes: "linear" (RoFormer-Sim), "tanh" (BERT), or "none".
    position_encoding (`str`): one of the encodings in modeling/position.
    rotary_value (`bool`): values are rotated too.
    rope_parameters (`dict`): rotary frequencies as transformers states them: `rope_theta`, `rope_type`, `factor`, ...,
        `partial_rotary_factor`.
    max_position_embeddings (`int`): length of the tables of "learned", "hierarchical", "multiplicative" and "tupe",
        and the trained length that rope scaling starts from; other encodings take any length.
    log_scaling (`bool`): queries are multiplied by log n / log 512, n tokens being seen (kexue.fm/archives/8823).
    relative_clip (`int`): the distance beyond which "shaw", "nezha" and "deberta" see no difference.
    relative_buckets, relative_max_distance (`int`): the buckets of "t5" and "tupe".
    classifier_act (`str`): activation in the heads that classify a sequence or choose: "tanh" as in BERT; in-tree
        RoFormer takes its `hidden_act`.
    enhanced_mask_decoder (`bool`): the masked language model decodes with absolute positions (arXiv:2006.03654).
    attention (`str`): "softmax" or "linear".
    feature_map, normalizer_eps: those of linear attention, see `NoriaLinearTransformerConfig`.
    rotary (`str`): linear attention rotates the "numerator" or "both" of its sums.
    """

    model_type = "noria_roformer"

    version: Literal[1, 2] = 1
    vocab_size: int = 12000
    embedding_size: Derived[int] = None
    hidden_act: Derived[str] = None
    norm_eps: float = 1e-12
    norm_type: Derived[Literal["layer_norm", "rms_norm"]] = None
    use_bias: Derived[bool] = None
    head_transform: Derived[bool] = None
    type_vocab_size: int = 2
    attention_dropout: float | int = 0.0
    bidirectional: bool = True
    unilm: bool = False
    pooler: Literal["none", "linear", "tanh"] = "none"
    position_encoding: PositionName = "rotary"
    rotary_value: bool = False
    rope_parameters: dict | None = None
    max_position_embeddings: int = 512
    log_scaling: bool = False
    relative_clip: int = 64
    relative_buckets: int = 32
    relative_max_distance: int = 128
    classifier_act: str = "tanh"
    enhanced_mask_decoder: bool = False
    attention: Literal["softmax", "linear"] = "softmax"
    feature_map: Literal["elu", "relu", "exp", "softmax", "cosine", "taylor"] = "elu"
    rotary: Literal["numerator", "both"] = "numerator"
    normalizer_eps: float = 1e-6
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def derive_sizes(self) -> None:
        super().derive_sizes()
        for name, value in VERSIONS[self.version].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size

    @property
    def layer_types(self) -> list[str]:
        kind = "full_attention" if self.attention == "softmax" else RECURRENT_LAYER_TYPE
        return [kind] * self.num_hidden_layers

    @property
    def value_head_dim(self) -> int:
        return self.head_dim

    def validate_even_heads(self) -> None:
        if self.position_encoding.startswith("rotary") or self.position_encoding == "xpos":
            self.require_even_heads("rotary positions turn pairs of channels")

    def validate_rotation(self) -> None:
        if self.rotary_value and not self.position_encoding.startswith("rotary"):
            raise ValueError(
                f"`rotary_value` turns values, which position_encoding={self.position_encoding!r} does not."
            )
        if self.unilm and self.position_encoding == "xpos":
            raise ValueError("xPos reads from left to right alone: a `unilm` prompt is read in both directions.")

    def validate_feature_map(self) -> None:
        if self.attention == "linear" and self.feature_map == "softmax" and self.rotary == "both":
            raise ValueError("the 'softmax' map normalises each feature: `rotary` may be 'numerator', not 'both'.")

    def validate_head(self) -> None:
        if not self.head_transform and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"without `head_transform` the embeddings decode the hidden states, so `embedding_size` "
                f"({self.embedding_size}) must be `hidden_size` ({self.hidden_size})."
            )

    def validate_visibility(self) -> None:
        if self.unilm and self.type_vocab_size < 2:
            raise ValueError(f"`unilm` needs two token types, but `type_vocab_size` is {self.type_vocab_size}.")
        if self.unilm and self.attention == "linear":
            raise ValueError("`unilm` masks scores, which linear attention never computes: set attention='softmax'.")
        if self.log_scaling and (self.unilm or self.attention == "linear"):
            raise ValueError("`log_scaling` is defined for softmax attention without `unilm`.")


__all__ = ["NoriaRoFormerConfig"]
