"""Linear transformer: Katharopoulos et al. 2020, Transformers are RNNs (arXiv:2006.16236)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, derive_heads, next_even, require_multiple


@strict
class NoriaLinearTransformerConfig(DecoderConfig):
    r"""
    num_attention_heads (`int`): by default heads about 64 wide.
    head_dim (`int`): width of each head's queries and keys; by default `hidden_size / num_attention_heads`, even.
    value_head_dim (`int`): width of each head's values; by default `head_dim`.
    intermediate_size (`int`): width of the feed-forward layer; by default four times `hidden_size`.
    hidden_act (`str`): its activation.
    feature_map (`str`): "elu" (elu + 1, the paper's), "relu", "exp", "softmax" (efficient attention, arXiv:1812.01243),
        "cosine" (1 + cos of the angle between q and k) or "taylor" (1 + q k^T, which may turn negative).
    rotary (`str`): rotate features by position in "numerator" and denominator ("both"), in the numerator alone,
        where the denominator stays positive, or not ("none").
    rotary_base (`float`): base of that rotation.
    position_encoding (`str`): what is added to the embeddings: "sinusoidal" or "none".
    normalizer_eps (`float`): added to the denominator.
    bidirectional (`bool`): every token sees all tokens; `...ForCausalLM` is causal and `...ForMaskedLM` bidirectional
        whatever this says.
    final_norm (`bool`): a norm after the last block.
    """

    model_type = "noria_linear_transformer"

    num_attention_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "relu"
    norm_eps: float = 1e-5
    feature_map: Literal["elu", "relu", "exp", "softmax", "cosine", "taylor"] = "elu"
    rotary: Literal["none", "numerator", "both"] = "none"
    rotary_base: float | int = 10000.0
    position_encoding: Literal["none", "sinusoidal"] = "sinusoidal"
    normalizer_eps: float = 1e-6
    bidirectional: bool = False
    final_norm: bool = True

    def derive_sizes(self) -> None:
        heads = self.num_attention_heads = self.num_attention_heads or derive_heads(self.hidden_size)
        if self.head_dim is None:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
            self.head_dim = next_even(self.hidden_size // heads)
        if self.value_head_dim is None:
            self.value_head_dim = self.head_dim
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    def validate_rotary(self) -> None:
        if self.rotary != "none" and self.head_dim % 2:
            raise ValueError(f"`head_dim` ({self.head_dim}) must be even where `rotary` is {self.rotary!r}.")


__all__ = ["NoriaLinearTransformerConfig"]
