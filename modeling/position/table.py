"""Every position encoding by the name that a configuration gives it: its part for the model, its part for a layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .base import PositionEncoding
from .rotary import Rotary
from .sinusoidal import Sinusoidal

Make = Callable[[Any], PositionEncoding]


def nothing(config: Any) -> PositionEncoding:
    return PositionEncoding()


class Encoding(NamedTuple):
    """`model` makes what is applied once, to embeddings `config.embedding_size` wide; `layer` what each layer has."""

    model: Make = nothing
    layer: Make = nothing


def rotary(config: Any) -> PositionEncoding:
    return Rotary(config.head_dim, config.rope_parameters["rope_theta"])


ENCODINGS: dict[str, Encoding] = {
    "none": Encoding(),
    "sinusoidal": Encoding(model=lambda config: Sinusoidal(config.embedding_size)),
    "rotary": Encoding(layer=rotary),
}


def encoding(name: str) -> Encoding:
    """The encoding called `name`. Raises ValueError naming the known ones otherwise."""
    if name not in ENCODINGS:
        raise ValueError(f"unknown position encoding {name!r}: choose from {sorted(ENCODINGS)}.")
    return ENCODINGS[name]
