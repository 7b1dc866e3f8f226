"""RWKV: Peng et al. 2023 (arXiv:2305.13048), 2024 (arXiv:2404.05892), 2025 (arXiv:2503.14456)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, derive_heads, logger, require_multiple

VERSIONS = (4, 5, 6, 7)


@strict
class NoriaRWKVConfig(DecoderConfig):
    r"""
    version (`int`): 4, 5 (which is 5.2), 6 or 7.
    attention_hidden_size (`int`): width of keys and values of all heads together; by default `hidden_size`.
    num_attention_heads (`int`): heads of versions 5 to 7, by default about 64 wide; version 4 has none.
    intermediate_size (`int`): width of the channel mix; by default what the published models have: four times
        `hidden_size` in versions 4 and 7, three and a half times in versions 5 and 6.
    mix_rank (`int`): rank of the token shift that depends on the data, in version 6; by default 32, or 64 from a
        `hidden_size` of 4096.
    decay_rank (`int`): rank of the decay that depends on the data, in versions 6 and 7. By default 64 in version 6, or
        128 from a `hidden_size` of 4096; this and the next grow with its square root in version 7.
    rate_rank, value_rank, gate_rank (`int`): ranks of the learning rate, of the share of the first layer's values, and
        of the gate, in version 7.
    rescale_every (`int`): where it is not 0, block l (from 0) holds the last weights of its two branches divided by
        2^(l // rescale_every), and the stream is halved after every so many blocks: the same function, in a range that
        float16 can hold. transformers saves RWKV-4 so after a forward pass in evaluation mode.
    embedding_norm_dtype (`str`): "bfloat16" or "float16" to norm the embeddings in that precision whatever the
        model's, as the package rwkv does in versions 4 to 6 with a file of that precision; None for the model's own.
    """

    model_type = "noria_rwkv"

    version: int = 4
    attention_hidden_size: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    rescale_every: int = 0
    mix_rank: int | None = None
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    embedding_norm_dtype: str | None = None
    norm_eps: float = 1e-5

    def derive_sizes(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f"`version` must be one of {', '.join(map(str, VERSIONS))}, not {self.version}.")
        if self.attention_hidden_size is None:
            self.attention_hidden_size = self.hidden_size
        if self.version == 4 and self.num_attention_heads is not None:
            logger.warning_once(f"RWKV-4 has no heads: `num_attention_heads` ({self.num_attention_heads}) is ignored.")
            self.num_attention_heads = None
        elif self.version > 4 and self.num_attention_heads is None:
            self.num_attention_heads = derive_heads(self.attention_hidden_size)
        if self.intermediate_size is None:
            self.intermediate_size = (
                4 * self.hidden_size if self.version in (4, 7) else max(self.hidden_size * 7 // 2 // 32 * 32, 32)
            )
        for name, rank in usual_ranks(self.version, self.hidden_size).items():
            if getattr(self, name) is None:
                setattr(self, name, rank)

    @property
    def head_size(self) -> int:
        """The width of each head of versions 5 to 7."""
        return self.attention_hidden_size // self.num_attention_heads

    def validate_rescale_every(self) -> None:
        if self.rescale_every < 0:
            raise ValueError(f"`rescale_every` must be at least 0, not {self.rescale_every}.")

    def validate_embedding_norm_dtype(self) -> None:
        if self.embedding_norm_dtype not in (None, "bfloat16", "float16"):
            raise ValueError(
                f"`embedding_norm_dtype` must be bfloat16, float16 or None, not {self.embedding_norm_dtype}."
            )

    def validate_heads(self) -> None:
        if self.attention_hidden_size < 1:
            raise ValueError(f"`attention_hidden_size` must be at least 1, not {self.attention_hidden_size}.")
        if self.version > 4:
            require_multiple(
                "attention_hidden_size", self.attention_hidden_size, "num_attention_heads", self.num_attention_heads
            )

    def validate_ranks(self) -> None:
        for name in usual_ranks(self.version, self.hidden_size):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")


def usual_ranks(version: int, width: int) -> dict[str, int]:
    """The ranks that the published models of a width have."""
    if version == 6:
        return {"mix_rank": 32, "decay_rank": 64} if width < 4096 else {"mix_rank": 64, "decay_rank": 128}
    if version == 7:
        growth = {
            "decay_rank": 1.8 * width**0.5,
            "rate_rank": 1.8 * width**0.5,
            "value_rank": 1.3 * width**0.5,
            "gate_rank": 0.6 * width**0.8,
        }
        return {name: max(32, round(rank / 32) * 32) for name, rank in growth.items()}
    return {}


__all__ = ["NoriaRWKVConfig"]
