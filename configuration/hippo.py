"""HiPPO-RNN: Gu et al. 2020, Recurrent Memory with Optimal Polynomial Projections (arXiv:2008.07669)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, logger

MEASURES = ("legs", "legt", "fout")
METHODS = ("bilinear", "backward_euler", "euler", "zoh")


@strict
class NoriaHiPPOConfig(DecoderConfig):
    r"""
    measure (`str`): what the memory keeps: "legs", the whole past, ever coarser; "legt" or "fout", the last `window`
        tokens in Legendre polynomials or a Fourier series.
    memory_order (`int`): coefficients that each channel of the memory has; by default 32, or `hidden_size` if less.
    memory_channels (`int`): signals that the memory keeps; by default so many that it has about `hidden_size` numbers.
    window (`float`): tokens that "legt" and "fout" keep; by default four for each coefficient.
    discretization (`str`): "bilinear", "zoh", "backward_euler" or "euler".
    num_attention_heads (`None`): there are none; PEFT asks every model for the name.
    """

    model_type = "noria_hippo"

    measure: str = "legs"
    memory_order: int | None = None
    memory_channels: int | None = None
    window: float | int | None = None
    discretization: str = "bilinear"
    num_attention_heads: int | None = None

    def derive_sizes(self) -> None:
        if self.num_attention_heads is not None:
            logger.warning_once(f"HiPPO has no heads: `num_attention_heads` ({self.num_attention_heads}) is ignored.")
            self.num_attention_heads = None
        if self.memory_order is None:
            self.memory_order = min(32, self.hidden_size)
        if self.memory_channels is None:
            self.memory_channels = max(1, self.hidden_size // max(1, self.memory_order))
        if self.window is None:
            self.window = 4.0 * self.memory_order

    def validate_memory(self) -> None:
        for name in ("memory_order", "memory_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        if not self.window > 0:
            raise ValueError(f"`window` must be above 0, not {self.window}.")

    def validate_memory_kind(self) -> None:
        for name, allowed in (("measure", MEASURES), ("discretization", METHODS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")


__all__ = ["NoriaHiPPOConfig"]
