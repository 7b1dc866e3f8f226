"""RoFormer: Su et al. 2021, Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, derive_heads, next_even, require_multiple


@strict
class NoriaRoFormerConfig(DecoderConfig):
    r"""
    num_attention_heads (`int`): by default heads about 64 wide.
    head_dim (`int`): width of each head; by default `hidden_size / num_attention_heads`, made even.
    intermediate_size (`int`): width of the feed-forward layer; by default four times `hidden_size`.
    hidden_act (`str`): activation of the feed-forward layer and of the head; "gelu" is the exact one.
    type_vocab_size (`int`): number of token types.
    attention_dropout (`float`): dropout of the attention weights while training.
    rotary_base (`float`): base of the rotation of queries and keys.
    """

    model_type = "noria_roformer"
    layer_type = "full_attention"

    vocab_size: int = 12000
    num_attention_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    norm_eps: float = 1e-12
    type_vocab_size: int = 2
    attention_dropout: float | int = 0.0
    rotary_base: float | int = 10000.0
    tie_word_embeddings: bool = True

    def derive_sizes(self) -> None:
        heads = self.num_attention_heads = self.num_attention_heads or derive_heads(self.hidden_size)
        if self.head_dim is None:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
            self.head_dim = next_even(self.hidden_size // heads)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    def validate_rotary(self) -> None:
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` ({self.head_dim}) must be even: rotary positions turn pairs of channels.")


__all__ = ["NoriaRoFormerConfig"]
