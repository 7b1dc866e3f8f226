"""Mamba-2: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060)."""

from huggingface_hub.dataclasses import strict

from .decoder import derive_heads, require_multiple
from .selective import SelectiveConfig

SIZES = ("inner_size", "scan_size", "num_attention_heads", "head_dim")


@strict
class NoriaMamba2Config(SelectiveConfig):
    r"""
    inner_size (`int`): width of the inner channels; by default `expand * hidden_size`, made a multiple of the heads.
    scan_size (`int`): how many of the inner channels pass through the recurrence; by default all. The others are a
        gated feed-forward layer beside it.
    num_attention_heads (`int`): heads of the recurrence, each of one decay; by default heads about 64 wide.
    head_dim (`int`): width of each head, where that is given instead.
    num_groups (`int`): groups of heads that share the maps B and C.
    decay_min, decay_max (`float`): initial decay rates -A lie between them.
    time_step_limit (`list[float]`): step sizes are held between these two at run time; by default they are not.
    skip_per_channel (`bool`): the skip D has a number for each channel, rather than for each head.
    gate_norm (`bool`): an RMS norm beside the gate, over the channels of each group.
    norm_before_gate (`bool`): norm(y) * silu(z), rather than norm(y * silu(z)).
    Further fields are those of `SelectiveConfig`.
    """

    model_type = "noria_mamba2"

    state_size: int = 128
    scan_size: int | None = None
    num_attention_heads: int | None = None
    head_dim: int | None = None
    num_groups: int = 1
    decay_min: float | int = 1.0
    decay_max: float | int = 16.0
    time_step_limit: list[float | int] | tuple[float | int, ...] | None = None
    skip_per_channel: bool = False
    gate_norm: bool = True
    norm_before_gate: bool = False

    def derive_sizes(self) -> None:
        for name in ("state_size", "conv_kernel", "num_groups", *SIZES):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        width = max(int(self.expand * self.hidden_size), 1)
        if self.scan_size is None:
            self.scan_size = self.inner_size
        if self.scan_size is None:
            self.derive_heads_of(width)
            self.scan_size = self.num_attention_heads * self.head_dim
        else:
            self.derive_heads_of(self.scan_size)
        if self.inner_size is None:
            self.inner_size = max(width, self.scan_size)

    def derive_heads_of(self, width: int) -> None:
        """As many heads as make up `width` channels; the last one may reach beyond it."""
        heads, groups = self.num_attention_heads, self.num_groups
        if heads is None:
            share = -(-width // groups)
            per_group = derive_heads(share) if self.head_dim is None else -(-share // self.head_dim)
            heads = self.num_attention_heads = groups * per_group
        if self.head_dim is None:
            self.head_dim = -(-width // heads)

    def validate_heads(self) -> None:
        if self.num_attention_heads * self.head_dim != self.scan_size:
            raise ValueError(
                f"{self.num_attention_heads} heads (`num_attention_heads`) of {self.head_dim} (`head_dim`) do not "
                f"make up the {self.scan_size} channels of the recurrence (`scan_size`, by default `inner_size`)."
            )
        require_multiple("num_attention_heads", self.num_attention_heads, "num_groups", self.num_groups)
        if self.scan_size > self.inner_size:
            raise ValueError(f"`scan_size` ({self.scan_size}) must be at most `inner_size` ({self.inner_size}).")

    def validate_steps(self) -> None:
        super().validate_steps()
        self.require_range("decay_min", "decay_max")
        limit = self.time_step_limit
        if limit is not None and (len(limit) != 2 or not 0 <= limit[0] <= limit[1]):
            raise ValueError(f"`time_step_limit` must be two step sizes, the least one first, not {limit}.")


__all__ = ["NoriaMamba2Config"]
