"""Inert stand-ins for what a pickle names: nothing here is ever looked up, imported or called."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Symbol:
    """The name of a class or function that a pickle mentions; it stays a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Opaque:
    """What the pickle would have built by calling `symbol`; its arguments, state and items are kept, unused."""

    symbol: Symbol
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.symbol}>"


class OrderedMapping(OrderedDict[Any, Any]):
    """An OrderedDict of a pickle; what the pickle sets on the object itself (`_metadata`) is kept in `attributes`."""

    attributes: Mapping[str, Any] = {}


class Namespace(dict[str, Any]):
    """The attributes of an argparse.Namespace or types.SimpleNamespace, as plain values."""


NAMESPACES = frozenset({Symbol("argparse", "Namespace"), Symbol("types", "SimpleNamespace")})


def is_container(symbol: Symbol) -> bool:
    """Whether `symbol` is a class whose content `plain` can read without importing it."""
    return symbol in NAMESPACES or symbol.module.split(".")[0] == "omegaconf"


def plain(value: Any) -> Any:
    """The plain value that a namespace or omegaconf node holds, one level deep; other values come back as they are."""
    if not isinstance(value, Opaque) or not is_container(value.symbol):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    if value.symbol in NAMESPACES:
        return Namespace({key: item for key, item in state.items() if isinstance(key, str)})
    if "_content" in state:
        return state["_content"]
    if "_val" in state:
        return plain(state["_val"])
    return value


def mapping(value: Any) -> dict[Any, Any] | None:
    """`value` as a mapping when it is one, or holds one that can be read without importing anything; else None."""
    value = plain(value)
    return value if isinstance(value, dict) else None
