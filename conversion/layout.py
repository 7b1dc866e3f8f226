"""The nested structure of a checkpoint as JSON, its tensors replaced by their names, and back.

JSON's own values stand for themselves; a JSON object always has one key that says what it stands for:
{"dict": ...}, {"pairs": ...}, {"ordered": ...}, {"namespace": ...}, {"tuple": ...}, {"set": ...}, {"bytes": ...},
{"number": ...}, {"complex": ...}, {"dtype": ...}, {"device": ...}, {"size": ...}, {"tensor": name, ...},
{"refused": class name}, {"dropped": reason}.
"""

import argparse
import base64
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .pickle_calls import DTYPES, NumpyArray
from .symbols import Namespace, Opaque, OrderedMapping, Symbol, plain

OPTIMIZER_KEYS = frozenset({"last_optimizer_state", "optimizer_states", "optimizer", "optimizer_state_dict"})
MAX_DEPTH, MAX_NODES = 100, 5_000_000
OMITTED = object()


class Encoder:
    """Encodes the content of one file. Tensors found on the way: `state` (below `state_path`) and `others`, by name.

    Tensors of the optimizer are left out; `dropped` says so, and `refused` names the objects that are no plain values.
    """

    def __init__(self, state_path: tuple[Any, ...]) -> None:
        self.state_path = state_path
        self.state: dict[str, Tensor] = {}
        self.others: dict[str, Tensor] = {}
        self.dropped: dict[str, str] = {}
        self.refused: set[str] = set()
        self.nodes = 0
        self.active: set[int] = set()
        self.views: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: tuple[Any, ...] = ()) -> Any:
        value = plain(value)
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise ValueError("the checkpoint is nested too deeply or holds too many plain values")
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if abs(value) < float("inf") else {"number": str(value)}
        if isinstance(value, NumpyArray) and value.tensor is not None:
            return self.tensor(value.tensor, path) | {"array": True}
        if isinstance(value, Tensor):
            return self.tensor(value, path)
        if isinstance(value, dict | list | tuple | set | frozenset):
            return self.nested(value, path)
        return self.leaf(value)

    def leaf(self, value: Any) -> dict[str, Any]:
        if isinstance(value, bytes | bytearray):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, complex):
            return {"complex": [str(value.real), str(value.imag)]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        name = str(value) if isinstance(value, Symbol) else str(getattr(value, "symbol", type(value).__name__))
        self.refused.add(name)
        return {"refused": name}

    def nested(self, value: Any, path: tuple[Any, ...]) -> Any:
        if id(value) in self.active:
            return {"refused": "a container that holds itself"}
        self.active.add(id(value))
        try:
            return self.pairs(value, path) if isinstance(value, dict) else self.items(value, path)
        finally:
            self.active.discard(id(value))

    def items(self, value: Any, path: tuple[Any, ...]) -> Any:
        items = [self.encode(item, (*path, number)) for number, item in enumerate(value)]
        if isinstance(value, list):
            return items
        kind = "size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else "set"
        return {kind: items}

    def pairs(self, value: dict[Any, Any], path: tuple[Any, ...]) -> dict[str, Any]:
        encoded = []
        for key, item in value.items():
            if isinstance(key, Symbol | Opaque):
                self.leaf(key)
                continue
            if not path and key in OPTIMIZER_KEYS and item is not None:
                self.dropped[str(key)] = "optimizer state"
                encoded.append((key, {"dropped": "optimizer state"}))
                continue
            encoded.append((key, self.encode(item, (*path, key))))
        kind = (
            "namespace" if isinstance(value, Namespace) else "ordered" if isinstance(value, OrderedMapping) else "dict"
        )
        if not all(isinstance(key, str) for key, _ in encoded):
            return {"pairs": [[self.encode(key, (*path, "")), item] for key, item in encoded]}
        attributes = getattr(value, "attributes", None)
        return {kind: dict(encoded)} | ({"attributes": self.encode(attributes, (*path, ""))} if attributes else {})

    def tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> dict[str, Any]:
        in_state = path[: len(self.state_path)] == self.state_path
        names = self.state if in_state else self.others
        name = ".".join(map(str, path[len(self.state_path) :])) if in_state else "/".join(map(str, path))
        if name in self.state or name in self.others:
            raise ValueError(f"two tensors of the checkpoint are called {name!r}")
        names[name] = tensor
        leaf: dict[str, Any] = {"tensor": name}
        if isinstance(tensor, torch.nn.Parameter):
            leaf["parameter"] = tensor.requires_grad
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and self.views.setdefault(view, name) != name:
            leaf["shares"] = self.views[view]
        return leaf


def decode(layout: Any, tensors: dict[str, Any], dropped: Collection[str] = ()) -> Any:
    """The structure that `Encoder` saw, with `tensors` in place; refused objects and the tensors that were `dropped`
    are left out of mappings.
    """
    if dropped:
        tensors = dict.fromkeys(dropped, OMITTED) | tensors
    if isinstance(layout, list):
        return [None if item is OMITTED else item for item in (decode(entry, tensors) for entry in layout)]
    if not isinstance(layout, dict):
        return layout
    kind = next(iter(layout))
    if kind == "tensor":
        return decode_tensor(layout, tensors)
    if kind in ("dict", "ordered", "namespace"):
        return decode_mapping(kind, layout, tensors)
    return decode_leaf(kind, layout[kind], tensors)


def decode_mapping(kind: str, layout: dict[str, Any], tensors: dict[str, Any]) -> Any:
    items = {key: decode(item, tensors) for key, item in layout[kind].items()}
    items = {key: item for key, item in items.items() if item is not OMITTED}
    if kind == "namespace":
        return argparse.Namespace(**items)
    if kind == "dict":
        return items
    ordered = OrderedDict(items)
    attributes = decode(layout.get("attributes", {"dict": {}}), tensors)
    if "_metadata" in attributes:
        ordered._metadata = attributes["_metadata"]  # type: ignore[attr-defined]
    return ordered


def decode_leaf(kind: str, value: Any, tensors: dict[str, Any]) -> Any:
    if kind == "refused":
        return OMITTED
    if kind == "dropped":
        return None
    if kind == "number":
        return float(value)
    if kind == "bytes":
        return base64.b64decode(value)
    if kind == "complex":
        return complex(float(value[0]), float(value[1]))
    if kind == "dtype":
        return DTYPES[value]
    if kind == "device":
        return torch.device(value)
    items = decode(value, tensors)
    if kind == "pairs":
        return {key: item for key, item in items if item is not OMITTED}
    return {"tuple": tuple, "set": set, "size": torch.Size}[kind](items)


def decode_tensor(layout: dict[str, Any], tensors: dict[str, Any]) -> Any:
    tensor, shared = tensors[layout["tensor"]], tensors[layout.get("shares", layout["tensor"])]
    if tensor is OMITTED:
        return OMITTED
    tensor = tensor if shared is OMITTED else shared
    if layout.get("array"):
        return tensor.numpy()
    return torch.nn.Parameter(tensor, layout["parameter"]) if "parameter" in layout else tensor
