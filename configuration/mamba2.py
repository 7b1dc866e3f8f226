"""Mamba-2: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, derive_heads, require_multiple

SIZES = ("inner_size", "scan_size", "num_attention_heads", "head_dim")


@strict
class NoriaMamba2Config(DecoderConfig):
    r"""
    state_size (`int`): numbers that each channel remembers.
    expand (`float`): width of the inner channels as a multiple of `hidden_size`.
    inner_size (`int`): that width itself; by default `expand * hidden_size`, made a multiple of the heads.
    scan_size (`int`): how many of the inner channels pass through the recurrence; by default all. The others are a
        gated feed-forward layer beside it.
    num_attention_heads (`int`): heads of the recurrence, each of one decay; by default heads about 64 wide.
    head_dim (`int`): width of each head, where that is given instead.
    num_groups (`int`): groups of heads that share the maps B and C.
    conv_kernel (`int`): tokens that the short convolution sees.
    decay_min, decay_max (`float`): initial decay rates -A lie between them.
    time_step_min, time_step_max (`float`): initial step sizes lie between them, evenly in their logarithm.
    time_step_floor (`float`): no initial step size is smaller.
    time_step_limit (`list[float]`): step sizes are held between these two at run time; by default they are not.
    skip_per_channel (`bool`): the skip D has a number for each channel, rather than for each head.
    gate_norm (`bool`): an RMS norm beside the gate, over the channels of each group.
    norm_before_gate (`bool`): norm(y) * silu(z), rather than norm(y * silu(z)).
    use_bias (`bool`): biases of the maps into and out of the inner channels.
    use_conv_bias (`bool`): bias of the convolution.
    hidden_act (`str`): activation after the convolution; the gate's is silu.
    norm (`str`): `rms_norm` or `layer_norm`.
    residual_in_fp32 (`bool`): sums of the residual stream in float32 where the weights are of half precision.
    rescale_prenorm_residual (`bool`): initial output maps are divided by sqrt(num_hidden_layers).
    bidirectional (`bool`): every token sees all others; the heads of encoders are so whatever this says.
    """

    model_type = "noria_mamba2"

    state_size: int = 128
    expand: float | int = 2
    inner_size: int | None = None
    scan_size: int | None = None
    num_attention_heads: int | None = None
    head_dim: int | None = None
    num_groups: int = 1
    conv_kernel: int = 4
    decay_min: float | int = 1.0
    decay_max: float | int = 16.0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_limit: list[float | int] | tuple[float | int, ...] | None = None
    skip_per_channel: bool = False
    gate_norm: bool = True
    norm_before_gate: bool = False
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    rescale_prenorm_residual: bool = True
    bidirectional: bool = False
    tie_word_embeddings: bool = True

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
        for least, most in (("time_step_min", "time_step_max"), ("decay_min", "decay_max")):
            if not 0 < getattr(self, least) <= getattr(self, most):
                raise ValueError(
                    f"`{least}` ({getattr(self, least)}) must be above 0 and at most `{most}` ({getattr(self, most)})."
                )
        if self.time_step_floor < 0:
            raise ValueError(f"`time_step_floor` must not be negative, but is {self.time_step_floor}.")
        limit = self.time_step_limit
        if limit is not None and (len(limit) != 2 or not 0 <= limit[0] <= limit[1]):
            raise ValueError(f"`time_step_limit` must be two step sizes, the least one first, not {limit}.")

    def validate_norm(self) -> None:
        if self.norm not in ("rms_norm", "layer_norm"):
            raise ValueError(f"`norm` must be 'rms_norm' or 'layer_norm', not {self.norm!r}.")


__all__ = ["NoriaMamba2Config"]
