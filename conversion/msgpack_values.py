"""The values of msgpack (github.com/msgpack/msgpack, spec.md), both ways, each in its least form."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

MAX_DEPTH = 100
# The first byte of a value -> how the length or the number that follows it is packed.
LENGTHS = {
    **{0xC4: ("bytes", "B"), 0xC5: ("bytes", "H"), 0xC6: ("bytes", "I")},
    **{0xC7: ("extension", "B"), 0xC8: ("extension", "H"), 0xC9: ("extension", "I")},
    **{0xD9: ("string", "B"), 0xDA: ("string", "H"), 0xDB: ("string", "I")},
    **{0xDC: ("list", "H"), 0xDD: ("list", "I"), 0xDE: ("map", "H"), 0xDF: ("map", "I")},
}
NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
FIXED_EXTENSIONS = {0xD4 + i: 1 << i for i in range(5)}


class Extension(NamedTuple):
    """A value of a type that msgpack leaves to the application, by its number."""

    code: int
    data: bytes


class Unpacker:
    """Reads one value from `data`. ValueError, which names the byte, where the data is cut off or malformed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def whole(self) -> Any:
        value = self.value(0)
        if self.place != len(self.data):
            raise ValueError(f"{len(self.data) - self.place} bytes follow its end at {self.place}")
        return value

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self.data):
            raise ValueError(f"it ends at {len(self.data)}, {end - len(self.data)} bytes too early: it is cut off")
        taken, self.place = self.data[self.place : end], end
        return taken

    def number(self, kind: str) -> Any:
        return struct.unpack(f">{kind}", self.take(struct.calcsize(kind)))[0]

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply at byte {self.place}")
        start, first = self.place, self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0xC0:
            kind, length = ("map", first & 15) if first < 0x90 else ("list", first & 15)
            return self.sized("string" if first >= 0xA0 else kind, first & 31 if first >= 0xA0 else length, depth)
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBERS:
            return self.number(NUMBERS[first])
        if first in FIXED_EXTENSIONS:
            return self.sized("extension", FIXED_EXTENSIONS[first], depth)
        if first not in LENGTHS:
            raise ValueError(f"byte {start} is {first:#x}, which begins no value")
        kind, size = LENGTHS[first]
        return self.sized(kind, self.number(size), depth)

    def sized(self, kind: str, length: int, depth: int) -> Any:
        if kind == "bytes":
            return self.take(length)
        if kind == "extension":
            return Extension(self.number("b"), self.take(length))
        if kind == "string":
            return self.text(length)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(length)]
        return dict(self.pair(depth) for _ in range(length))

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the text before byte {self.place} is not UTF-8") from error

    def pair(self, depth: int) -> tuple[Any, Any]:
        key = self.value(depth + 1)
        if not isinstance(key, str | int):
            raise ValueError(f"the key before byte {self.place} is {type(key).__name__}, not text or a number")
        return key, self.value(depth + 1)


def pack(value: Any) -> bytes:
    """A value as bytes. TypeError for one that msgpack lacks, OverflowError for a number beyond 64 bits."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return pack_integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return (bytes([0xA0 + len(text)]) if len(text) < 32 else head(len(text), "string")) + text
    if isinstance(value, bytes):
        return head(len(value), "bytes") + value
    if isinstance(value, Extension):
        return pack_extension(value)
    if isinstance(value, list):
        return pack_list(len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        return pack_map(len(value)) + b"".join(pack(part) for pair in value.items() for part in pair)
    raise TypeError(f"msgpack has no {type(value).__name__}")


def pack_map(length: int) -> bytes:
    """What stands before `length` keys and values."""
    return bytes([0x80 + length]) if length < 16 else head(length, "map")


def pack_list(length: int) -> bytes:
    """What stands before `length` values."""
    return bytes([0x90 + length]) if length < 16 else head(length, "list")


def head(length: int, kind: str) -> bytes:
    """The first byte of a value of this kind, and its length in as few bytes as hold it."""
    for first, (name, size) in LENGTHS.items():
        if name == kind and length < 1 << 8 * struct.calcsize(size):
            return bytes([first]) + struct.pack(f">{size}", length)
    raise OverflowError(f"msgpack holds no {kind} of {length} parts")


def pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b" if value < 0 else "B", value)
    for first, kind in NUMBERS.items():
        bits = 8 * struct.calcsize(kind)
        fits = 0 <= value < 1 << bits if kind.isupper() else value < 0 and value >= -(1 << bits - 1)
        if kind not in "fd" and fits:
            return bytes([first]) + struct.pack(f">{kind}", value)
    raise OverflowError(f"msgpack holds no number of more than 64 bits, such as {value}")


def pack_extension(value: Extension) -> bytes:
    size = len(value.data)
    fixed = next((first for first, length in FIXED_EXTENSIONS.items() if length == size), None)
    return (head(size, "extension") if fixed is None else bytes([fixed])) + struct.pack("b", value.code) + value.data
