"""Linear transformer: Katharopoulos et al. 2020, Transformers are RNNs (arXiv:2006.16236)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .decoder import Derived, HeadsConfig


@strict
class NoriaLinearTransformerConfig(HeadsConfig):
    r"""
    value_head_dim (`int`): width of each head's values; by default `head_dim`.
    hidden_act (`str`): its activation.
    feature_map (`str`): "elu" (elu + 1, the paper's), "relu", "exp", "softmax" (efficient, arXiv:1812.01243),
        "cosine" (1 + cos of the angle between q and k) or "taylor" (1 + q k^T, which may turn negative).
    rotary (`str`): rotate features by position in "numerator" and denominator ("both"), in the numerator alone,
        where the denominator stays positive, or not ("none").
    rotary_base (`float`): base of that rotation.
    position_encoding (`str`): what is added to the embeddings: "sinusoidal" or "none".
    scale_embedding (`bool`): multiply embeddings by sqrt(hidden_size) (arXiv:1706.03762, section 3.4), lest the code
        that is added drown them; by default where "sinusoidal" positions are added to embeddings of the model's own.
    normalizer_eps (`float`): added to the denominator.
    bidirectional (`bool`): every token sees all tokens; `...ForCausalLM` is causal and `...ForMaskedLM` bidirectional
        whatever this says.
    final_norm (`bool`): a norm after the last block.
    """

    model_type = "noria_linear_transformer"

    value_head_dim: Derived[int] = None
    hidden_act: str = "relu"
    norm_eps: float = 1e-5
    feature_map: Literal["elu", "relu", "exp", "softmax", "cosine", "taylor"] = "elu"
    rotary: Literal["none", "numerator", "both"] = "none"
    rotary_base: float | int = 10000.0
    position_encoding: Literal["none", "sinusoidal"] = "sinusoidal"
    scale_embedding: Derived[bool] = None
    normalizer_eps: float = 1e-6
    bidirectional: bool = False
    final_norm: bool = True

    def derive_sizes(self) -> None:
        super().derive_sizes()
        if self.value_head_dim is None:
            self.value_head_dim = self.head_dim
        if self.scale_embedding is None:
            self.scale_embedding = self.position_encoding == "sinusoidal" and self.vocab_size > 0

    def validate_rotary(self) -> None:
        if self.rotary != "none":
            self.require_even_heads("rotary positions turn pairs of channels")
        if self.rotary == "both" and self.feature_map == "softmax":
            raise ValueError(
                "the 'softmax' map normalises each feature: `rotary` may be 'numerator' or 'none', not 'both'."
            )


__all__ = ["NoriaLinearTransformerConfig"]
