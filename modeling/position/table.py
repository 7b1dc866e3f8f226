"""Every position encoding by the name that a configuration gives it: its part for the model, its part for a layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .alibi import Alibi
from .base import PositionEncoding
from .deberta import Disentangled, RelativeTable
from .nezha import Nezha
from .rotary import Rotary
from .shaw import Shaw
from .sinusoidal import Sinusoidal
from .t5 import SharedBias, T5Bias
from .transformer_xl import TransformerXL
from .tupe import TERMS, Tupe

Make = Callable[[Any], PositionEncoding]


def nothing(config: Any) -> PositionEncoding:
    return PositionEncoding()


class Encoding(NamedTuple):
    """`model` makes what is applied once, to embeddings `config.embedding_size` wide; `layer` what each layer has."""

    model: Make = nothing
    layer: Make = nothing


def rotary(config: Any) -> PositionEncoding:
    return Rotary(config.head_dim, config.rope_parameters["rope_theta"])


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
    "sinusoidal": Encoding(model=lambda config: Sinusoidal(config.embedding_size)),
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
    "rotary": Encoding(layer=rotary),
}


def encoding(name: str) -> Encoding:
    """The encoding called `name`. Raises ValueError naming the known ones otherwise."""
    if name not in ENCODINGS:
        raise ValueError(f"unknown position encoding {name!r}: choose from {sorted(ENCODINGS)}.")
    return ENCODINGS[name]
