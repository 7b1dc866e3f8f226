"""Mamba: Gu and Dao 2023, Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752)."""

import math

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, logger


@strict
class NoriaMambaConfig(DecoderConfig):
    r"""
    state_size (`int`): numbers that each channel remembers.
    expand (`float`): width of the inner channels as a multiple of `hidden_size`.
    inner_size (`int`): that width itself; by default `expand * hidden_size`.
    conv_kernel (`int`): tokens that the short convolution sees.
    time_step_rank (`int`): rank of the map to the step sizes; by default `hidden_size / 16`, rounded up.
    time_step_min, time_step_max (`float`): initial step sizes lie between them, evenly in their logarithm.
    time_step_floor (`float`): no initial step size is smaller.
    time_step_offset (`float`): added to every step size at run time.
    use_bias (`bool`): biases of the maps into and out of the inner channels.
    use_conv_bias (`bool`): bias of the convolution.
    use_projection_bias (`bool`): bias of the map to the step sizes, B and C.
    hidden_act (`str`): activation after the convolution; the gate's is silu.
    norm (`str`): `rms_norm` or `layer_norm`.
    residual_in_fp32 (`bool`): sums of the residual stream in float32 where the weights are of half precision.
    rescale_prenorm_residual (`bool`): initial output maps are divided by sqrt(num_hidden_layers).
    num_attention_heads (`None`): there are none; PEFT asks every model for the name.
    bidirectional (`bool`): every token sees all others; the heads of encoders are so whatever this says.
    """

    model_type = "noria_mamba"

    state_size: int = 16
    expand: float | int = 2
    inner_size: int | None = None
    conv_kernel: int = 4
    time_step_rank: int | None = None
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_offset: float = 0.0
    use_bias: bool = False
    use_conv_bias: bool = True
    use_projection_bias: bool = False
    hidden_act: str = "silu"
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    rescale_prenorm_residual: bool = True
    num_attention_heads: int | None = None
    bidirectional: bool = False
    tie_word_embeddings: bool = True

    def derive_sizes(self) -> None:
        if self.num_attention_heads is not None:
            logger.warning_once(f"Mamba has no heads: `num_attention_heads` ({self.num_attention_heads}) is ignored.")
            self.num_attention_heads = None
        if self.inner_size is None:
            self.inner_size = int(self.expand * self.hidden_size)
        if self.time_step_rank is None:
            self.time_step_rank = math.ceil(self.hidden_size / 16)

    def validate_inner_sizes(self) -> None:
        for name in ("state_size", "inner_size", "conv_kernel", "time_step_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")

    def validate_steps(self) -> None:
        if not 0 < self.time_step_min <= self.time_step_max:
            raise ValueError(
                f"`time_step_min` ({self.time_step_min}) must be above 0 and at most `time_step_max` "
                f"({self.time_step_max})."
            )
        for name in ("time_step_floor", "time_step_offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but is {getattr(self, name)}.")

    def validate_norm(self) -> None:
        if self.norm not in ("rms_norm", "layer_norm"):
            raise ValueError(f"`norm` must be 'rms_norm' or 'layer_norm', not {self.norm!r}.")


__all__ = ["NoriaMambaConfig"]
