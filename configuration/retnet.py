"""RetNet: Sun et al. 2023, Retentive Network (arXiv:2307.08621)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, derive_heads, next_even, require_multiple


@strict
class NoriaRetNetConfig(DecoderConfig):
    r"""
    num_attention_heads (`int`): retention heads; head h forgets at rate 2^(-5-h). By default heads about 64 wide.
    key_size (`int`): width of all queries together; by default `hidden_size`, made even per head.
    value_size (`int`): width of all values together; by default twice `hidden_size`, as in the paper.
    intermediate_size (`int`): width of the gated feed-forward layer; by default twice `hidden_size`.
    hidden_act (`str`): activation of the feed-forward layer's gate.
    gate_act (`str`): activation of retention's gate.
    rotary_base (`float`): base of the rotation of queries and keys.
    rotary_frequencies (`list[float]`): the angle per token of each pair of a head's channels, where it does not follow
        from `rotary_base`: a checkpoint that was trained in half precision rounded them.
    log_decay (`list[float]`): log gamma of each head, likewise.
    scale_embedding (`bool`): multiply embeddings by sqrt(hidden_size).
    embedding_norm (`bool`): a norm on the embeddings.
    post_norm (`bool`): norms after each residual sum instead of before each branch, and none after the last block.
    residual_scale (`float`): what the residual stream is multiplied by before a branch is added; DeepNorm takes
        (2 num_hidden_layers)^(1/4) (arXiv:2203.00555).
    """

    model_type = "noria_retnet"

    num_attention_heads: int | None = None
    key_size: int | None = None
    value_size: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "silu"
    gate_act: str = "silu"
    rotary_base: float | int = 10000.0
    rotary_frequencies: list[float] | None = None
    log_decay: list[float] | None = None
    scale_embedding: bool = False
    embedding_norm: bool = False
    post_norm: bool = False
    residual_scale: float | int = 1.0

    def derive_sizes(self) -> None:
        if self.num_attention_heads is None:
            self.num_attention_heads = derive_heads(self.hidden_size)
        heads = self.num_attention_heads
        if self.key_size is None:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
            self.key_size = heads * next_even(self.hidden_size // heads)
        if self.value_size is None:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
            self.value_size = 2 * self.hidden_size
        if self.intermediate_size is None:
            self.intermediate_size = 2 * self.hidden_size

    def validate_heads(self) -> None:
        require_multiple("key_size", self.key_size, "2 * num_attention_heads", 2 * self.num_attention_heads)
        require_multiple("value_size", self.value_size, "num_attention_heads", self.num_attention_heads)

    def validate_tables(self) -> None:
        pairs = self.key_size // self.num_attention_heads // 2
        for name, length in (("rotary_frequencies", pairs), ("log_decay", self.num_attention_heads)):
            table = getattr(self, name)
            if table is not None and len(table) != length:
                raise ValueError(f"`{name}` has {len(table)} numbers, but the other sizes ask for {length}.")


__all__ = ["NoriaRetNetConfig"]
