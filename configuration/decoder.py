"""What every causal decoder of the house is configured by, and the rules by which missing sizes are derived."""

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A field that may be left at None and has a value once the configuration is made: type checkers let its readers take
# the value for granted, and the strict dataclass lets None in.
T = TypeVar("T")
if TYPE_CHECKING:
    Derived: TypeAlias = T | Any
else:
    Derived = T | None

# The name under which the cache layer of this version is registered with transformers. It carries the version because
# the registry is global: a flat copy of another version may live in the same process.
RECURRENT_LAYER_TYPE = "noria_recurrent_0_1_0"

# Words that most decoders of the field have. A family that lacks one of them ignores it, and says so once.
FAMILIAR_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "attention_dropout",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
)


def derive_heads(width: int, head_dim: int = 64) -> int:
    """The divisor of `width` that makes heads closest to `head_dim` wide, by ratio; even head sizes come first."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]

    def distance(heads: int) -> tuple[bool, float]:
        ratio = width / heads / head_dim
        return (width // heads) % 2 == 1, max(ratio, 1 / ratio)

    return min(divisors, key=distance)


def next_even(size: int) -> int:
    return size + size % 2


def require_multiple(name: str, size: int, divisor_name: str, divisor: int) -> None:
    """Raises ValueError naming both values unless `size` is a positive multiple of `divisor`."""
    if divisor < 1:
        raise ValueError(f"`{divisor_name}` must be at least 1, not {divisor}.")
    if size < 1 or size % divisor:
        below = max(size // divisor, 1) * divisor
        raise ValueError(
            f"`{name}` ({size}) is not a multiple of `{divisor_name}` ({divisor}): try {below} or {below + divisor}."
        )


@strict
class DecoderConfig(PreTrainedConfig):
    r"""
    vocab_size (`int`): number of token ids; 0 makes a model without embedding, which takes `inputs_embeds`.
    hidden_size (`int`): width of the residual stream.
    num_hidden_layers (`int`): number of blocks.
    norm_eps (`float`): epsilon of the norms.
    dropout (`float`): dropout on each residual branch while training.
    initializer_range (`float`): standard deviation of the initial weights.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    # Non-native names must never be serialised (tools without noria refuse them), so `layer_types` is a property.
    layer_type = RECURRENT_LAYER_TYPE

    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    norm_eps: float = 1e-6
    dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs) -> None:
        self.validate_sizes()
        self.derive_sizes()
        for name in FAMILIAR_FIELDS:
            if name in kwargs and not hasattr(type(self), name) and name not in self.attribute_map:
                value = kwargs.pop(name)
                logger.warning_once(f"{type(self).__name__} has no `{name}`: the value {value!r} is ignored.")
        super().__post_init__(**kwargs)

    def derive_sizes(self) -> None:
        """Fill the fields that were left at None from those that were given. Each family overrides what it has."""

    @property
    def layer_types(self) -> list[str]:
        return [self.layer_type] * self.num_hidden_layers

    def validate_layer_type(self) -> None:
        """Replaces the base validator, which knows transformers' own names alone."""

    def validate_sizes(self) -> None:
        for name, least in (("vocab_size", 0), ("hidden_size", 1), ("num_hidden_layers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, not {getattr(self, name)}.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < max(self.vocab_size, 1):
            raise ValueError(f"`pad_token_id` ({self.pad_token_id}) must lie in 0..{self.vocab_size - 1}, or be None.")


@strict
class HeadsConfig(DecoderConfig):
    r"""
    num_attention_heads (`int`): by default heads about 64 wide.
    head_dim (`int`): width of each head; by default `hidden_size / num_attention_heads`, made even.
    intermediate_size (`int`): width of the feed-forward layer; by default four times `hidden_size`.
    """

    num_attention_heads: Derived[int] = None
    head_dim: Derived[int] = None
    intermediate_size: Derived[int] = None

    def derive_sizes(self) -> None:
        if self.num_attention_heads is None:
            self.num_attention_heads = derive_heads(self.hidden_size)
        if self.head_dim is None:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
            self.head_dim = next_even(self.hidden_size // self.num_attention_heads)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    def require_even_heads(self, reason: str) -> None:
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` ({self.head_dim}) must be even: {reason}.")
