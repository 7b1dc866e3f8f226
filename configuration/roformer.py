"""RoFormer: Su et al. 2021, Enhanced Transformer with Rotary Position Embedding (arXiv:2104.09864)."""

from huggingface_hub.dataclasses import strict

from .decoder import HeadsConfig


@strict
class NoriaRoFormerConfig(HeadsConfig):
    r"""
    hidden_act (`str`): activation of the feed-forward layer and of the head; "gelu" is the exact one.
    type_vocab_size (`int`): number of token types.
    attention_dropout (`float`): dropout of the attention weights while training.
    rotary_base (`float`): base of the rotation of queries and keys.
    """

    model_type = "noria_roformer"
    layer_type = "full_attention"

    vocab_size: int = 12000
    hidden_act: str = "gelu"
    norm_eps: float = 1e-12
    type_vocab_size: int = 2
    attention_dropout: float | int = 0.0
    rotary_base: float | int = 10000.0
    tie_word_embeddings: bool = True

    def validate_rotary(self) -> None:
        self.require_even_heads("rotary positions turn pairs of channels")


__all__ = ["NoriaRoFormerConfig"]
