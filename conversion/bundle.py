"""Reads TensorFlow's V2 checkpoints ("tensor bundles") without TensorFlow: X.index and X.data-00000-of-00001, ...

The index is a sorted table that gives each tensor's dtype, shape, place and checksum; the data files hold nothing but
the tensors' little-endian bytes.
"""

import mmap
import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bundle_messages import DTYPES, STRING, Entry, Header
from .crc32c import crc32c, masked
from .sstable import is_table, read_table

INDEX = ".index"
DATA_NAME = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
LFS_POINTER = b"version https://git-lfs"
PART, MOST_ELEMENTS = 1 << 22, 1 << 58


@dataclass
class Bundle:
    """What a bundle holds: `tensors` by name, in the index's order, mapped from the data files and private.

    `layout` (JSON) is what is needed to write the same files again: the format's version, and for each data file the
    names of its tensors in their order. `dropped` names the tensors that were not read, with the reason.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def index_of(path: Path) -> Path | None:
    """X.index for itself and for a data file of X; None for any other name."""
    if path.suffix == INDEX:
        return path
    match = DATA_NAME.fullmatch(path.name)
    return path.with_name(match[1] + INDEX) if match else None


def data_files(index: Path) -> list[Path]:
    """The data files that the index counts; FileNotFoundError names the missing ones."""
    return shard_files(index, read_index(index)[0].num_shards)


def read_bundle(index: Path) -> Bundle:
    """Reads X.index and its data files; every checksum is compared.

    Tensors of strings are left out. ValueError, which names the file, the tensor and the offset, where a file is
    damaged, cut off or of another kind, and for variables in slices; FileNotFoundError for a missing data file.
    """
    header, entries = read_index(index)
    files = shard_files(index, header.num_shards)
    bundle = Bundle(dropped={name: "a tensor of strings" for name, entry in entries.items() if entry.dtype == STRING})
    entries = {name: entry for name, entry in entries.items() if entry.dtype != STRING}
    for name, entry in entries.items():
        check_entry(index, name, entry, header)
    order = sorted(entries, key=lambda name: (entries[name].offset, entries[name].size > 0))
    shards = [[name for name in order if entries[name].shard == shard] for shard in range(header.num_shards)]
    read: dict[str, Tensor] = {}
    for file, names in zip(files, shards, strict=True):
        read |= read_data(file, {name: entries[name] for name in names})
    bundle.tensors = {name: read[name] for name in entries}
    version = {"producer": header.producer, "min_consumer": header.min_consumer}
    bundle.layout = {"version": version | {"bad_consumers": list(header.bad_consumers)}, "shards": shards}
    return bundle


def read_index(index: Path) -> tuple[Header, dict[str, Entry]]:
    """The header and the entries of X.index; FileNotFoundError where it is missing, ValueError where it is damaged."""
    if not index.is_file():
        raise FileNotFoundError(f"{index} is missing, without which its data files cannot be read")
    data = index.read_bytes()
    if data.startswith(LFS_POINTER):
        raise ValueError(f"{index} is a git-lfs pointer, not the file itself: fetch it with git lfs pull")
    try:
        pairs = read_table(data)
        if not pairs or pairs[0][0]:
            raise ValueError("it has no header: it is a sorted table of another kind")
        header = Header.parse(pairs[0][1])
        return header, {name_of(key): Entry.parse(value) for key, value in pairs[1:] if not is_slice(key)}
    except ValueError as error:
        raise ValueError(f"{index} is not a readable index of a TensorFlow V2 checkpoint: {error}") from error


def is_slice(key: bytes) -> bool:
    """Whether a key is that of a slice, which no name can be; the variable itself has an entry that is refused."""
    return key.startswith(b"\0")


def name_of(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the name {key!r} is not UTF-8") from error


def is_v1_checkpoint(file: Path) -> bool:
    """Whether a file is a sorted table, which TensorFlow's V1 checkpoints of one file are."""
    with file.open("rb") as stream:
        stream.seek(-min(8, file.stat().st_size), 2)
        return is_table(stream.read())


def shard_name(index: Path, shard: int, count: int) -> str:
    return f"{index.name.removesuffix(INDEX)}.data-{shard:05d}-of-{count:05d}"


def shard_files(index: Path, count: int) -> list[Path]:
    files = [index.with_name(shard_name(index, shard, count)) for shard in range(count)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"{index} lacks its data files: {', '.join(missing[:3])}{more} missing")
    return files


def check_entry(index: Path, name: str, entry: Entry, header: Header) -> None:
    where = f"{index}: tensor {name!r}"
    if entry.dtype not in DTYPES:
        raise ValueError(f"{where} has TensorFlow's dtype number {entry.dtype}, which is not read")
    if entry.sliced:
        raise ValueError(f"{where} is stored in slices (a partitioned variable), which are not put together")
    if entry.shard >= header.num_shards:
        raise ValueError(f"{where} is said to stand in data file {entry.shard} of {header.num_shards}")
    if prod(max(size, 1) for size in entry.shape) >= MOST_ELEMENTS:
        raise ValueError(f"{where} has the shape {entry.shape}, which is too large")
    if entry.size != prod(entry.shape) * DTYPES[entry.dtype].itemsize:
        raise ValueError(
            f"{where} of shape {entry.shape} and {DTYPES[entry.dtype]} is said to have {entry.size} bytes"
        )


def read_data(file: Path, entries: dict[str, Entry]) -> dict[str, Tensor]:
    """The tensors of one data file, as parts of a private mapping of it: memory is used where one is looked at."""
    with file.open("rb") as stream:
        length = file.stat().st_size
        for name, entry in entries.items():
            if entry.offset + entry.size > length:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
                reason = "is a git-lfs pointer, not the file itself" if pointer else f"ends at {length}: it is cut off"
                raise ValueError(f"{file} {reason}; tensor {name!r} has {entry.size} bytes at offset {entry.offset}")
        for name, entry in entries.items():
            if masked(checksum(stream, entry)) != entry.checksum:
                raise ValueError(
                    f"{file} is damaged: the bytes of tensor {name!r}, {entry.size} at offset {entry.offset}, "
                    "have another checksum (crc32c) than the index says"
                )
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if length else bytearray()
    return {name: tensor_at(data, entry) for name, entry in entries.items()}


def checksum(stream: Any, entry: Entry) -> int:
    """Read, not mapped, so that checking a file leaves none of it in memory."""
    stream.seek(entry.offset)
    result, left = 0, entry.size
    while left and (part := stream.read(min(left, PART))):
        result, left = crc32c(part, result), left - len(part)
    return result


def tensor_at(data: Any, entry: Entry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if not entry.size:
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=entry.size, offset=entry.offset)
    # Nothing in the format aligns tensors, and most operations want their elements aligned.
    aligned = flat.clone() if entry.offset % dtype.itemsize else flat
    return aligned.view(dtype).reshape(entry.shape)
