"""What Mamba (arXiv:2312.00752) and Mamba-2 (arXiv:2405.21060) are told in the same words."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig


@strict
class SelectiveConfig(DecoderConfig):
    r"""
    state_size (`int`): numbers that each channel remembers.
    expand (`float`): width of the inner channels as a multiple of `hidden_size`.
    inner_size (`int`): that width itself.
    conv_kernel (`int`): tokens that the short convolution sees.
    time_step_min, time_step_max (`float`): initial step sizes lie between them, evenly in their logarithm.
    time_step_floor (`float`): no initial step size is smaller.
    use_bias (`bool`): biases of the maps into and out of the inner channels.
    use_conv_bias (`bool`): bias of the convolution.
    hidden_act (`str`): activation after the convolution; the gate's is silu.
    norm (`str`): `rms_norm` or `layer_norm`.
    residual_in_fp32 (`bool`): sums of the residual stream in float32 where the weights are of half precision.
    rescale_prenorm_residual (`bool`): initial output maps are divided by sqrt(num_hidden_layers).
    bidirectional (`bool`): every token sees all others; the heads of encoders are so whatever this says.
    """

    state_size: int = 16
    expand: float | int = 2
    inner_size: int | None = None
    conv_kernel: int = 4
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    rescale_prenorm_residual: bool = True
    bidirectional: bool = False
    tie_word_embeddings: bool = True

    def require_range(self, least: str, most: str) -> None:
        """Raises ValueError unless the field `least` is above 0 and at most the field `most`."""
        if not 0 < getattr(self, least) <= getattr(self, most):
            raise ValueError(
                f"`{least}` ({getattr(self, least)}) must be above 0 and at most `{most}` ({getattr(self, most)})."
            )

    def require_not_negative(self, name: str) -> None:
        if getattr(self, name) < 0:
            raise ValueError(f"`{name}` must not be negative, but is {getattr(self, name)}.")

    def validate_steps(self) -> None:
        self.require_range("time_step_min", "time_step_max")
        self.require_not_negative("time_step_floor")

    def validate_norm(self) -> None:
        if self.norm not in ("rms_norm", "layer_norm"):
            raise ValueError(f"`norm` must be 'rms_norm' or 'layer_norm', not {self.norm!r}.")
