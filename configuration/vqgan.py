"""VQGAN: Esser, Rombach and Ommer 2021, Taming Transformers for High-Resolution Image Synthesis (arXiv:2012.09841)."""

from math import prod

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .decoder import FAMILIAR_FIELDS, logger

ATTENTIONS = ("full", "linear", "none")
QUANTIZERS = ("vq", "ema", "gumbel", "fsq")
TASKS = ("image", "segmentation")
PUBLISHED_GROUPS = 32
LEAST_LEVEL, LARGEST_LEVEL = 3, 8


def derive_levels(size: int) -> list[int]:
    """Factors of `size`, from 3 to 8 each where its divisors allow, the largest first; `size` itself where not."""
    for level in range(min(size // LEAST_LEVEL, LARGEST_LEVEL), LEAST_LEVEL - 1, -1):
        if size % level == 0 and size > LARGEST_LEVEL:
            rest = derive_levels(size // level)
            if min(rest) >= LEAST_LEVEL:
                return sorted([level, *rest], reverse=True)
    return [size]


@strict
class NoriaVQGANConfig(PreTrainedConfig):
    r"""
    vocab_size (`int`): vectors of the codebook.
    hidden_size (`int`): channels at full resolution.
    num_hidden_layers (`int`): residual blocks at each level of the encoder; the decoder has one more.
    channel_multipliers (`list[int]`): each level's width in multiples of `hidden_size`, from full resolution down.
    attention_resolutions (`list[int]`): sizes of `image_size`'s maps, level by level, at which blocks attend.
    image_size (`int`): the side of the images that the model is made for; it takes other sizes too.
    num_channels, output_channels (`int`): channels that are read and written; by default the same.
    latent_channels (`int`): channels of the encoder's output, twice that with `double_latent`.
    code_size (`int`): width of the vectors that the decoder is given for codes.
    double_latent (`bool`): the encoder's output has two halves; a published configuration never sets it.
    attention (`str`): "full", "linear" (linear cost in pixels), or "none", which leaves out the middle's as well.
    resample_with_conv (`bool`): strided and following convolutions; else averages of 2x2 and plain repetition.
    dropout (`float`): dropout inside residual blocks while training.
    tanh_output (`bool`): the decoder's output goes through tanh.
    norm_num_groups (`int`): groups of the norms; by default 32, or the largest divisor of `hidden_size` below that.
    norm_eps (`float`): epsilon of the norms.
    quantizer (`str`): "vq", "ema" (a codebook of running means), "gumbel", or "fsq" (rounding, no learned codebook).
    normalize_codes (`bool`): latents and codes are compared at unit length ("vq", "ema").
    factorized_size (`int`): codes are looked up in so many channels, which a linear map makes ("vq", "ema").
    commitment_cost (`float`): beta, the weight of one of the quantizer's two losses.
    legacy_commitment (`bool`): beta weighs the codebook's loss, as in all published models, not the encoder's.
    gumbel_temperature (`float`): of the Gumbel softmax while training.
    straight_through (`bool`): the Gumbel softmax gives one code while training; else a mixture of all.
    kl_weight (`float`): weight of the divergence from uniform use ("gumbel").
    ema_decay (`float`): share of the past in the running means ("ema").
    revive_after (`int`): a code that so many training steps left unused becomes a vector of the batch; 0 is never.
    fsq_levels (`list[int]`): values that each channel is rounded to; their product is `vocab_size`.
    codebook_weight (`float`): weight of the quantizer's loss in the model's.
    task (`str`): "image" (mean absolute error), or "segmentation" (binary cross-entropy of logits for each label).
    used_codes (`list[int]`): codes are numbered by their place in this list.
    unknown_code (`int` or `str`): what a code outside it becomes: a place in the list, "random", or "extra", one more.
    initializer_range (`float`): standard deviation of the initial weights; by default PyTorch's own initialisation,
        from which the published models were trained.
    """

    model_type = "noria_vqgan"

    vocab_size: int = 1024
    hidden_size: int = 128
    num_hidden_layers: int = 2
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    attention_resolutions: list[int] | tuple[int, ...] = (16,)
    image_size: int = 256
    num_channels: int = 3
    output_channels: int | None = None
    latent_channels: int = 256
    code_size: int = 256
    double_latent: bool = False
    attention: str = "full"
    resample_with_conv: bool = True
    dropout: float | int = 0.0
    tanh_output: bool = False
    norm_num_groups: int | None = None
    norm_eps: float = 1e-6
    quantizer: str = "vq"
    normalize_codes: bool = False
    factorized_size: int | None = None
    commitment_cost: float | int = 0.25
    legacy_commitment: bool = True
    gumbel_temperature: float | int = 1.0
    straight_through: bool = True
    kl_weight: float | int = 5e-4
    ema_decay: float | int = 0.99
    revive_after: int = 0
    fsq_levels: list[int] | tuple[int, ...] | None = None
    codebook_weight: float | int = 1.0
    task: str = "image"
    used_codes: list[int] | tuple[int, ...] | None = None
    unknown_code: int | str = "random"
    initializer_range: float | None = None

    def __post_init__(self, **kwargs) -> None:
        self.validate_sizes()
        self.validate_choices()
        self.validate_numbers()
        self.validate_depth()
        if self.output_channels is None:
            self.output_channels = self.num_channels
        if self.norm_num_groups is None:
            self.norm_num_groups = max(n for n in range(1, PUBLISHED_GROUPS + 1) if self.hidden_size % n == 0)
        if self.quantizer == "fsq" and self.fsq_levels is None:
            self.fsq_levels = derive_levels(self.vocab_size)
        self.validate_groups()
        self.validate_quantizer()
        self.validate_used_codes()
        for name in FAMILIAR_FIELDS:
            if name in kwargs:
                logger.warning_once(f"VQGAN has no `{name}`: the value {kwargs.pop(name)!r} is ignored.")
        super().__post_init__(**kwargs)

    @property
    def downsampling(self) -> int:
        """Pixels, along each side of an image, that one code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def level_widths(self) -> list[int]:
        """Channels of each level, from full resolution down."""
        return [self.hidden_size * multiplier for multiplier in self.channel_multipliers]

    @property
    def num_codes(self) -> int:
        """How many numbers codes can have: `vocab_size`, or as many as `used_codes` and an extra one make."""
        if self.used_codes is None:
            return self.vocab_size
        return len(self.used_codes) + (self.unknown_code == "extra")

    def validate_sizes(self) -> None:
        positive = ("vocab_size", "hidden_size", "image_size", "num_channels", "latent_channels", "code_size")
        for name in (*positive, "output_channels", "norm_num_groups", "factorized_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        for name in ("num_hidden_layers", "revive_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, not {getattr(self, name)}.")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            given = list(self.channel_multipliers)
            raise ValueError(f"`channel_multipliers` must hold a positive number for each level, not {given}.")

    def validate_choices(self) -> None:
        for name, known in (("attention", ATTENTIONS), ("quantizer", QUANTIZERS), ("task", TASKS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, not {getattr(self, name)!r}.")

    def validate_groups(self) -> None:
        if self.hidden_size % (self.norm_num_groups or 1):
            raise ValueError(
                f"`norm_num_groups` ({self.norm_num_groups}) must divide `hidden_size` ({self.hidden_size}), of which "
                "all widths are multiples."
            )

    def validate_depth(self) -> None:
        if not self.num_hidden_layers and set(self.channel_multipliers[:-1]) - {1}:
            raise ValueError(
                "with `num_hidden_layers` 0 nothing changes the encoder's width: all `channel_multipliers` but the "
                f"last must be 1, not {list(self.channel_multipliers)}."
            )

    def validate_numbers(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, not {self.dropout}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, not {self.ema_decay}.")
        if self.gumbel_temperature <= 0:
            raise ValueError(f"`gumbel_temperature` must be positive, not {self.gumbel_temperature}.")
        for name in ("commitment_cost", "kl_weight", "codebook_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, not {getattr(self, name)}.")

    def validate_quantizer(self) -> None:
        for name, off in (("normalize_codes", False), ("factorized_size", None), ("revive_after", 0)):
            if getattr(self, name) != off and self.quantizer not in ("vq", "ema"):
                raise ValueError(f'`{name}` belongs to the quantizers "vq" and "ema", not to {self.quantizer!r}.')
        if self.fsq_levels is None:
            return
        if self.quantizer != "fsq":
            raise ValueError(f'`fsq_levels` belong to the quantizer "fsq", not to {self.quantizer!r}.')
        if min(self.fsq_levels, default=0) < LEAST_LEVEL or prod(self.fsq_levels) != self.vocab_size:
            raise ValueError(
                f"`fsq_levels` ({list(self.fsq_levels)}) must be {LEAST_LEVEL} at least, and their product "
                f"`vocab_size` ({self.vocab_size}): it is {prod(self.fsq_levels)}."
            )

    def validate_used_codes(self) -> None:
        if isinstance(self.unknown_code, str) and self.unknown_code not in ("random", "extra"):
            raise ValueError(f'`unknown_code` must be a number, "random" or "extra", not {self.unknown_code!r}.')
        if self.used_codes is None:
            return
        if not self.used_codes or not 0 <= min(self.used_codes) <= max(self.used_codes) < self.vocab_size:
            raise ValueError(f"`used_codes` must hold numbers from 0 to {self.vocab_size - 1}, `vocab_size` less one.")
        if len(set(self.used_codes)) < len(self.used_codes):
            raise ValueError("`used_codes` must hold each code once: some are there twice.")
        if isinstance(self.unknown_code, int) and not 0 <= self.unknown_code < len(self.used_codes):
            last = len(self.used_codes) - 1
            raise ValueError(
                f"`unknown_code` must lie in 0..{last}, the places of `used_codes`, not {self.unknown_code}."
            )


__all__ = ["NoriaVQGANConfig"]
