"""Every position encoding by the name that a configuration gives it: its part for the model, its part for a layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .alibi import Alibi
from .base import PositionEncoding
from .complex_order import ComplexOrder
from .convolution import Convolution
from .deberta import Disentangled, RelativeTable
from .floater import Floater
from .hierarchical import Hierarchical
from .learned import Learned
from .multiplicative import Multiplicative
from .nezha import Nezha
from .recursive import Recursive
from .rotary import Rotary
from .rotary_half import RotaryHalf
from .rotary_trainable import RotaryTrainable
from .shaw import Shaw
from .sinusoidal import Sinusoidal
from .t5 import SharedBias, T5Bias
from .transformer_xl import TransformerXL
from .tupe import TERMS, Tupe
from .xpos import XPos

Make = Callable[[Any], PositionEncoding]


def nothing(config: Any) -> PositionEncoding:
    return PositionEncoding()


class Encoding(NamedTuple):
    """`model` makes what is applied once, to embeddings `config.embedding_size` wide; `layer` what each layer has."""

    model: Make = nothing
    layer: Make = nothing


def tabled(kind: Callable[[int, int], PositionEncoding]) -> Make:
    """A maker of encodings that have one row for each of `max_position_embeddings` positions."""
    return lambda config: kind(config.max_position_embeddings, config.embedding_size)


def rotary(kind: Callable[..., PositionEncoding]) -> Make:
    """A maker of rotary encodings of this kind; what `rope_type` asks for is added by those who know transformers."""

    def make(config: Any) -> PositionEncoding:
        rope = config.rope_parameters
        rotated = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        return kind(config.head_dim, rope["rope_theta"], rotated=rotated, values=config.rotary_value)

    return make


def t5_bias(config: Any) -> T5Bias:
    # UniLM shows a prompt what lies ahead, under a causal head too.
    return T5Bias(config.num_attention_heads, config.relative_buckets, config.relative_max_distance, config.unilm)


def tupe(config: Any) -> PositionEncoding:
    width, heads, length = config.hidden_size, config.num_attention_heads, config.max_position_embeddings
    return Tupe(width, heads, config.head_dim, length, t5_bias(config), config.norm_eps)


def disentangled(config: Any) -> PositionEncoding:
    return Disentangled(config.hidden_size, config.num_attention_heads, config.head_dim, config.relative_clip)


ENCODINGS: dict[str, Encoding] = {
    "none": Encoding(),
    "learned": Encoding(model=tabled(Learned)),
    "hierarchical": Encoding(model=tabled(Hierarchical)),
    "sinusoidal": Encoding(model=lambda config: Sinusoidal(config.embedding_size)),
    "recursive": Encoding(model=lambda config: Recursive(config.embedding_size)),
    "floater": Encoding(model=lambda config: Floater(config.embedding_size)),
    "multiplicative": Encoding(model=tabled(Multiplicative)),
    "complex": Encoding(model=lambda config: ComplexOrder(config.embedding_size, config.vocab_size or None)),
    "convolution": Encoding(model=lambda config: Convolution(config.embedding_size)),
    "shaw": Encoding(layer=lambda config: Shaw(config.head_dim, config.relative_clip)),
    "nezha": Encoding(layer=lambda config: Nezha(config.head_dim, config.relative_clip)),
    "transformer_xl": Encoding(
        layer=lambda config: TransformerXL(config.hidden_size, config.num_attention_heads, config.head_dim)
    ),
    "t5": Encoding(model=t5_bias, layer=lambda config: SharedBias()),
    "tupe": Encoding(model=tupe, layer=lambda config: SharedBias(TERMS)),
    "deberta": Encoding(
        model=lambda config: RelativeTable(config.hidden_size, config.relative_clip), layer=disentangled
    ),
    "alibi": Encoding(layer=lambda config: Alibi(config.num_attention_heads)),
    "rotary": Encoding(layer=rotary(Rotary)),
    "rotary_half": Encoding(layer=rotary(RotaryHalf)),
    "rotary_trainable": Encoding(layer=rotary(RotaryTrainable)),
    "xpos": Encoding(layer=rotary(XPos)),
}


def encoding(name: str) -> Encoding:
    """The encoding called `name`. Raises ValueError naming the known ones otherwise."""
    if name not in ENCODINGS:
        raise ValueError(f"unknown position encoding {name!r}: choose from {sorted(ENCODINGS)}.")
    return ENCODINGS[name]
