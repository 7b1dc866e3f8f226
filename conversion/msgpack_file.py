"""Reads and writes the msgpack files of Flax (`flax.serialization.to_bytes`) without Flax and msgpack.

The content is a nested map of arrays and plain values. Extension type 1 is an array, 3 a NumPy scalar, each a packed
(shape, name of the dtype, bytes); 2 is a complex number. Arrays of more than 2^30 bytes are maps of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .msgpack_values import Extension, Unpacker, pack, pack_list, pack_map
from .raw_bytes import raw_bytes

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
MOST_BYTES = 1 << 30
OPTIMIZER = "opt_state"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        torch.bool,
    )
}


@dataclass
class FlaxFile:
    """`tensors` by their path, joined by dots; `layout` is JSON, the nested content with names instead of tensors."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    layout: Any = None


def is_msgpack(file: Path) -> bool:
    """Whether a file is called .msgpack, or begins with a map that is not empty and whose first key is a string."""
    if file.suffix == ".msgpack":
        return True
    with file.open("rb") as stream:
        head = stream.read(6)
    rest = {0xDE: 3, 0xDF: 5}.get(head[0], 1) if head else 0
    is_map = bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    return is_map and len(head) > rest and (0xA0 <= head[rest] <= 0xBF or head[rest] == 0xD9)


def read_msgpack(file: Path) -> FlaxFile:
    """The content of a file. ValueError, which names the file and the place, where it is damaged or of another kind.

    The state of the optimizer, under the key `opt_state`, is left out.
    """
    read = FlaxFile()
    try:
        content = Unpacker(file.read_bytes()).whole()
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not a map of tensors")
        read.layout = encode(read, content, ())
    except ValueError as error:
        raise ValueError(f"{file} is not a readable msgpack file of Flax: {error}") from error
    return read


def write_msgpack(file: Path, layout: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes what `read_msgpack` read, with `tensors` by their names in its layout."""
    with file.open("wb") as stream:
        stream.writelines(pieces(layout, tensors))


def encode(read: FlaxFile, value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict) and value.get(CHUNKED) is True:
        return keep(read, joined(value, path), path, ARRAY)
    if isinstance(value, dict):
        return {"map": [[key, encode_item(read, key, item, path)] for key, item in value.items()]}
    if isinstance(value, list):
        return {"list": [encode(read, item, (*path, str(place))) for place, item in enumerate(value)]}
    if isinstance(value, Extension):
        if value.code == COMPLEX:
            return {"complex": list(unpacked(value, path))}
        return keep(read, array(value, path), path, value.code)
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def encode_item(read: FlaxFile, key: Any, item: Any, path: tuple[str, ...]) -> Any:
    if not path and key == OPTIMIZER and item is not None:
        read.dropped[OPTIMIZER] = "optimizer state"
        return None
    return encode(read, item, (*path, str(key)))


def keep(read: FlaxFile, tensor: Tensor, path: tuple[str, ...], code: int) -> dict[str, Any]:
    name = ".".join(path)
    if name in read.tensors:
        raise ValueError(f"two tensors are called {name!r}")
    read.tensors[name] = tensor
    return {"tensor": name} | ({"scalar": True} if code == SCALAR else {})


def unpacked(extension: Extension, path: tuple[str, ...]) -> Any:
    try:
        return Unpacker(extension.data).whole()
    except ValueError as error:
        raise ValueError(f"{'.'.join(path)!r}: {error}") from error


def array(extension: Extension, path: tuple[str, ...]) -> Tensor:
    name = ".".join(path)
    if extension.code not in (ARRAY, SCALAR):
        raise ValueError(f"{name!r} is of extension type {extension.code}, which Flax does not write")
    match unpacked(extension, path):
        case [list(shape), str(kind), bytes(data)] if all(isinstance(size, int) and size >= 0 for size in shape):
            pass
        case _:
            raise ValueError(f"{name!r} is not a shape, a dtype and bytes")
    if kind not in DTYPES:
        raise ValueError(f"{name!r} has dtype {kind!r}, which is not read")
    dtype = DTYPES[kind]
    if len(data) != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} of shape {tuple(shape)} and {kind} has {len(data)} bytes")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def joined(value: dict[Any, Any], path: tuple[str, ...]) -> Tensor:
    """An array that was cut into chunks."""
    try:
        shape, chunks = ([value[key][str(i)] for i in range(len(value[key]))] for key in ("shape", "chunks"))
        return torch.cat([array(chunk, path) for chunk in chunks]).reshape(shape)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the chunks of {'.'.join(path)!r} do not make an array: {error}") from error


def pieces(layout: Any, tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    if not isinstance(layout, dict):
        yield pack(layout)
    elif "map" in layout:
        yield pack_map(len(layout["map"]))
        for key, item in layout["map"]:
            yield pack(key)
            yield from pieces(item, tensors)
    elif "list" in layout:
        yield pack_list(len(layout["list"]))
        for item in layout["list"]:
            yield from pieces(item, tensors)
    elif "tensor" in layout:
        yield from tensor_pieces(tensors[layout["tensor"]], SCALAR if layout.get("scalar") else ARRAY)
    elif "complex" in layout:
        yield pack(Extension(COMPLEX, pack(layout["complex"])))
    else:
        yield pack(bytes.fromhex(layout["bytes"]))


def tensor_pieces(tensor: Tensor, code: int) -> Iterator[bytes]:
    if tensor.nbytes <= MOST_BYTES:
        yield pack(extension_of(tensor, code))
        return
    parts = tensor.reshape(-1).split(max(1, MOST_BYTES // tensor.itemsize))
    yield pack_map(3) + pack(CHUNKED) + pack(True)
    yield pack("shape") + pack({str(i): size for i, size in enumerate(tensor.shape)})
    yield pack("chunks") + pack_map(len(parts))
    for place, part in enumerate(parts):
        yield pack(str(place)) + pack(extension_of(part, code))


def extension_of(tensor: Tensor, code: int) -> Extension:
    data = raw_bytes(tensor).numpy().tobytes()
    return Extension(code, pack([list(tensor.shape), str(tensor.dtype).removeprefix("torch."), data]))
