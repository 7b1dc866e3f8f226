"""S4: Gu et al. 2021 (arXiv:2111.00396), with the kernels that followed it."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, logger, next_even, require_multiple

KERNELS = ("s4", "s4d", "dss", "s5", "rtf")
# What each kernel may begin from and how it is made discrete; the first is the default.
INITS = {
    "s4": ("legs", "legt", "fout"),
    "s4d": ("lin", "inv", "inv2", "quad", "legs", "real"),
    "dss": ("legs", "lin", "inv", "inv2", "quad", "real"),
    "s5": ("legs", "lin", "inv", "inv2", "quad", "real"),
}
DISCRETIZATIONS = {
    "s4": ("bilinear",),
    "s4d": ("zoh", "bilinear"),
    "dss": ("softmax", "exp"),
    "s5": ("zoh", "bilinear"),
}
TRANSFORMS = ("exp", "softplus", "relu", "sigmoid", "none")


@strict
class NoriaS4Config(DecoderConfig):
    r"""
    kernel (`str`): the system that runs over each channel: "s4" (diagonal plus low rank), "s4d" (diagonal), "dss"
        (diagonal, normalised), "s5" (diagonal over all channels together), "rtf" (a rational transfer function).
    state_size (`int`): real numbers that a channel remembers, half as many complex ones; even, unless `real_states`
        or for "rtf". By default 64. For "s5" those of all channels together, by default `hidden_size`.
    init (`str`): the matrix that training begins from: "legs", "legt", "fout" (s4), "lin", "inv", "inv2", "quad",
        "legs", "real" (s4d, dss and s5).
    discretization (`str`): "bilinear" (s4), "zoh" or "bilinear" (s4d and s5), "softmax" or "exp" (dss).
    rank (`int`): rank of s4's low-rank part; by default 2 for "legt", else 1.
    num_ssm (`int`): independent systems; channels share them in turn. By default one for each channel.
    dt_min, dt_max (`float`): time steps are drawn between them.
    dt_act (`str`): step size as a function of its parameter: "exp", "softplus", "relu", "sigmoid" or "none".
    real_act (`str`): likewise for the negated real parts of the poles.
    kernel_length (`int`): for s4 the length L for which the output weights are stored as C (I - A^L), as published
        checkpoints hold them, or 0 for C itself; for dss the length over which "softmax" normalises, or 0 for that of
        each call, which allows no recurrence; for rtf as for s4.
    max_kernel_length (`int`): cut the response off after so many tokens, as checkpoints do that were trained with a
        longest length; this allows no recurrence either. By default it is as long as the text.
    real_states (`bool`): real poles without imaginary part, `state_size` of them.
    input_matrix (`bool`): trained input weights B (s4d and dss); without them B is 1.
    bidirectional (`bool`): a second kernel that runs from the end, in a model without a causal head.
    hidden_act (`str`): activation between the system and the gated output layer.
    bare (`bool`): blocks without norm and residual sum, and no last norm, as the published layer stands alone.
    pooling (`str`): what a classifier reads: "mean" of the real tokens, or the "last".
    num_attention_heads (`None`): there are none; PEFT asks every model for the name.
    """

    model_type = "noria_s4"

    kernel: str = "s4"
    state_size: int | None = None
    init: str | None = None
    discretization: str | None = None
    rank: int | None = None
    num_ssm: int | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_act: str = "exp"
    real_act: str = "exp"
    kernel_length: int | None = None
    max_kernel_length: int | None = None
    real_states: bool = False
    input_matrix: bool = True
    bidirectional: bool = False
    hidden_act: str = "gelu"
    bare: bool = False
    pooling: str = "mean"
    num_attention_heads: int | None = None

    def derive_sizes(self) -> None:
        if self.num_attention_heads is not None:
            logger.warning_once(f"S4 has no heads: `num_attention_heads` ({self.num_attention_heads}) is ignored.")
            self.num_attention_heads = None
        if self.kernel not in KERNELS:
            raise ValueError(f"unknown kernel {self.kernel!r}: choose from {', '.join(KERNELS)}.")
        if self.state_size is None:
            self.state_size = next_even(self.hidden_size) if self.kernel == "s5" else 64
        if self.init is None and self.kernel in INITS:
            self.init = INITS[self.kernel][0]
        if self.discretization is None and self.kernel in DISCRETIZATIONS:
            self.discretization = DISCRETIZATIONS[self.kernel][0]
        if self.rank is None:
            self.rank = 2 if self.init == "legt" else 1
        if self.num_ssm is None:
            self.num_ssm = self.hidden_size
        if self.kernel_length is None:
            self.kernel_length = 1024 if self.kernel == "dss" else 0

    def validate_kernel(self) -> None:
        for name, table in (("init", INITS), ("discretization", DISCRETIZATIONS)):
            value, known = getattr(self, name), table.get(self.kernel)
            if known is not None and value not in known:
                raise ValueError(f"`{name}` {value!r} is not one of kernel {self.kernel!r}: {', '.join(known)}.")
        for name in ("dt_act", "real_act"):
            if getattr(self, name) not in TRANSFORMS:
                raise ValueError(f"`{name}` must be one of {', '.join(TRANSFORMS)}, not {getattr(self, name)!r}.")
        if self.pooling not in ("mean", "last"):
            raise ValueError(f"`pooling` must be 'mean' or 'last', not {self.pooling!r}.")
        if self.kernel in ("s4", "s5") and (self.real_states or not self.input_matrix):
            raise ValueError(
                f"kernel {self.kernel!r} has complex states and input weights: choose 's4d' or 'dss' for others."
            )

    def validate_kernel_sizes(self) -> None:
        least = 1 if self.real_states or self.kernel not in INITS else 2
        if self.state_size < least or (least == 2 and self.state_size % 2):
            raise ValueError(
                f"`state_size` must be {'even and ' if least == 2 else ''}positive, not {self.state_size}."
            )
        require_multiple("hidden_size", self.hidden_size, "num_ssm", self.num_ssm)
        if self.rank < (2 if self.init == "legt" else 1):
            raise ValueError(
                f"`rank` must be at least {2 if self.init == 'legt' else 1} for {self.init!r}, not {self.rank}."
            )
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"`dt_min` ({self.dt_min}) must be positive and at most `dt_max` ({self.dt_max}).")
        if self.kernel_length < 0 or (self.max_kernel_length is not None and self.max_kernel_length < 1):
            raise ValueError(
                f"`kernel_length` ({self.kernel_length}) must not be negative, nor `max_kernel_length` "
                f"({self.max_kernel_length}) below 1."
            )


__all__ = ["NoriaS4Config"]
