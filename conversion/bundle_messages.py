"""The protocol buffers of a bundle's index (tensor_bundle.proto), read and written by hand: header and entry."""

from dataclasses import dataclass
from struct import pack

import torch

from .varint import read_varint, write_varint

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
STRING = 7
# The numbers of TensorFlow's types.proto; the quantised types (11-13, 15, 16) have no counterpart here.
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    8: torch.complex64,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    17: torch.uint16,
    18: torch.complex128,
    19: torch.float16,
    22: torch.uint32,
    23: torch.uint64,
}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
Message = dict[int, list[int | bytes]]


def parse(data: bytes) -> Message:
    """The fields of a message by number, each with its values; ValueError where it is malformed."""
    message: Message = {}
    place = 0
    while place < len(data):
        tag, place = read_varint(data, place)
        kind, value = tag & 7, 0
        if kind == VARINT:
            value, place = read_varint(data, place)
        elif kind in (FIXED32, FIXED64, BYTES):
            size, place = read_varint(data, place) if kind == BYTES else (4 if kind == FIXED32 else 8, place)
            value, place = data[place : place + size], place + size
            if place > len(data):
                raise ValueError("a field of the message is longer than the message")
            if kind != BYTES:
                value = int.from_bytes(value, "little")
        else:
            raise ValueError(f"the message has a field of the unknown wire type {kind}")
        message.setdefault(tag >> 3, []).append(value)
    return message


def number(message: Message, field: int, default: int = 0) -> int:
    value = message.get(field, [default])[-1]
    if isinstance(value, bytes):
        raise ValueError(f"field {field} of the message should be a number")
    return value


def numbers(message: Message, field: int) -> tuple[int, ...]:
    """A repeated number, whether each stands for itself or all are packed into bytes."""
    found: list[int] = []
    for value in message.get(field, []):
        packed, place = value if isinstance(value, bytes) else write_varint(value), 0
        while place < len(packed):
            item, place = read_varint(packed, place)
            found.append(item)
    return tuple(found)


def parts(message: Message, field: int) -> list[bytes]:
    values = message.get(field, [])
    if not all(isinstance(value, bytes) for value in values):
        raise ValueError(f"field {field} of the message should be a message itself")
    return [value for value in values if isinstance(value, bytes)]


def varint_field(field: int, value: int) -> bytes:
    """A number as the format writes it: left out where it is 0."""
    return write_varint(field << 3 | VARINT) + write_varint(value) if value else b""


def bytes_field(field: int, value: bytes) -> bytes:
    return write_varint(field << 3 | BYTES) + write_varint(len(value)) + value


@dataclass(frozen=True)
class Header:
    """The value of the empty key. `producer`, `min_consumer`, `bad_consumers` are versions of TensorFlow's format."""

    num_shards: int
    producer: int = 1
    min_consumer: int = 0
    bad_consumers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> "Header":
        """ValueError where the data is big-endian or wants a newer reader."""
        message = parse(data)
        if 1 in message and isinstance(message[1][0], bytes):
            raise ValueError("it is a TensorFlow V1 checkpoint, a format of one file that is not read; save it as V2")
        if number(message, 2):
            raise ValueError("its tensors are big-endian, which is not read")
        version = parse(b"".join(parts(message, 3)))
        header = cls(number(message, 1), number(version, 1), number(version, 2), numbers(version, 3))
        if not 0 < header.num_shards < 100_000:
            raise ValueError(f"it says that there are {header.num_shards} data files")
        if header.min_consumer > 1:
            raise ValueError(f"it wants a reader of version {header.min_consumer} or newer; this one has version 1")
        return header

    def encode(self) -> bytes:
        version = varint_field(1, self.producer) + varint_field(2, self.min_consumer)
        if self.bad_consumers:
            version += bytes_field(3, b"".join(map(write_varint, self.bad_consumers)))
        return varint_field(1, self.num_shards) + bytes_field(3, version)


@dataclass(frozen=True)
class Entry:
    """One tensor: TensorFlow's number of its dtype, its shape, and where its bytes stand. `checksum` is masked."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool = False

    @classmethod
    def parse(cls, data: bytes) -> "Entry":
        message = parse(data)
        shape = parse(b"".join(parts(message, 2)))
        sizes = tuple(number(parse(size), 1) for size in parts(shape, 2))
        place = (number(message, field) for field in (3, 4, 5, 6))
        return cls(number(message, 1), sizes, *place, sliced=7 in message)

    def encode(self) -> bytes:
        shape = b"".join(bytes_field(2, varint_field(1, size)) for size in self.shape)
        entry = varint_field(1, self.dtype) + bytes_field(2, shape) + varint_field(3, self.shard)
        entry += varint_field(4, self.offset) + varint_field(5, self.size)
        return entry + (write_varint(6 << 3 | FIXED32) + pack("<I", self.checksum) if self.checksum else b"")
