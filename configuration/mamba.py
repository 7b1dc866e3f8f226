"""Mamba: Gu and Dao 2023, Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752)."""

import math

from huggingface_hub.dataclasses import strict

from .decoder import logger
from .selective import SelectiveConfig


@strict
class NoriaMambaConfig(SelectiveConfig):
    r"""
    inner_size (`int`): width of the inner channels; by default `expand * hidden_size`.
    time_step_rank (`int`): rank of the map to the step sizes; by default `hidden_size / 16`, rounded up.
    time_step_offset (`float`): added to every step size at run time.
    use_projection_bias (`bool`): bias of the map to the step sizes, B and C.
    num_attention_heads (`None`): there are none; PEFT asks every model for the name.
    Further fields are those of `SelectiveConfig`.
    """

    model_type = "noria_mamba"

    time_step_rank: int | None = None
    time_step_offset: float = 0.0
    use_projection_bias: bool = False
    num_attention_heads: int | None = None

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
        super().validate_steps()
        self.require_not_negative("time_step_offset")


__all__ = ["NoriaMambaConfig"]
