"""Reads what torch.save writes, zip and older files alike, without unpickling: tensors and plain values only."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .pickle_calls import STORAGE_DTYPES
from .pickle_machine import Machine
from .symbols import Symbol

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class TorchFile(NamedTuple):
    """The object that a file holds, its container ("zip" or "legacy"), and the names of classes that were not read."""

    content: Any
    container: str
    refused: set[str]


class Bounded(io.BufferedReader):
    """A file that sets no memory aside for more bytes than it has, whatever length a pickle claims."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = raw.seek(0, io.SEEK_END)
        raw.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_torch(path: Path) -> TorchFile:
    """Reads the file at `path`. ValueError names the file where it is truncated, corrupt or of another kind."""
    try:
        if zipfile.is_zipfile(path):
            return read_zip(path)
        with Bounded(io.FileIO(path)) as stream:
            if stream.read(4) == b"PK\x03\x04":
                raise ValueError("the zip archive is truncated")
            return read_legacy(stream, stream.size)
    except (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable torch file: {error}") from error


def storage_dtype(identifier: Any) -> tuple[torch.dtype, str, int]:
    """The dtype, key and element count of a persistent id ("storage", class, key, device, count, ...)."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise ValueError(f"unknown persistent id {str(identifier)[:80]!r}")
    kind, key, count = identifier[1], identifier[2], identifier[4]
    if not isinstance(kind, Symbol) or kind.name not in STORAGE_DTYPES or not isinstance(count, int):
        raise ValueError(f"unknown storage type {str(kind)!r}")
    return STORAGE_DTYPES[kind.name], str(key), count


def typed(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) < count * dtype.itemsize:
        raise ValueError(f"a storage of {count * dtype.itemsize} bytes holds only {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def read_zip(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in entries:
            raise ValueError("the archive has no data.pkl")
        if "constants.pkl" in entries:
            raise ValueError("it is a TorchScript program, not a checkpoint")
        if "byteorder" in entries and member(archive, entries["byteorder"]).strip() != b"little":
            raise ValueError("it was written on a big-endian machine")
        machine = Machine(io.BytesIO(member(archive, entries["data.pkl"])), zip_storages(archive, entries))
        return TorchFile(machine.run(), "zip", machine.refused)


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one member; torch compresses none, and a compressed one may be larger than the memory."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def zip_storages(archive: zipfile.ZipFile, entries: dict[str, str]) -> Callable[[Any], Tensor]:
    """Answers persistent ids from the archive; views of one storage keep sharing it."""
    loaded: dict[str, Tensor] = {}

    def load(identifier: Any) -> Tensor:
        dtype, key, count = storage_dtype(identifier)
        if key not in loaded:
            if f"data/{key}" not in entries:
                raise ValueError(f"the archive lacks storage {key}")
            loaded[key] = typed(member(archive, entries[f"data/{key}"]), dtype, count)
        return loaded[key]

    return load


def read_legacy(stream: BinaryIO, size: int) -> TorchFile:
    """torch before 1.6: magic number, protocol, system, the object, the storage keys, then each storage's raw data."""
    stream.seek(0)
    try:
        magic = plain_pickle(stream)
    except ValueError as error:
        raise ValueError("it is neither a zip archive nor a torch pickle") from error
    if magic != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but torch.save did not write it")
    plain_pickle(stream)
    system = plain_pickle(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, Tensor] = {}
    machine = Machine(stream, legacy_storages(storages, size))
    content = machine.run()
    for key in plain_pickle(stream):
        fill(storages, str(key), stream)
    return TorchFile(content, "legacy", machine.refused)


def plain_pickle(stream: BinaryIO) -> Any:
    def no_storage(identifier: Any) -> Any:
        raise ValueError(f"unexpected persistent id {str(identifier)[:80]!r}")

    return Machine(stream, no_storage).run()


def legacy_storages(storages: dict[str, Tensor], size: int) -> Callable[[Any], Any]:
    """Answers persistent ids with storages that `fill` completes once the object is read."""

    def load(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] == "module":
            return identifier[1]
        dtype, key, count = storage_dtype(identifier)
        if key not in storages:
            if not 0 <= count * dtype.itemsize <= size:
                raise ValueError(f"storage {key} claims more bytes than the file has")
            storages[key] = torch.zeros(count, dtype=dtype)
        view = identifier[5] if len(identifier) > 5 else None
        return storages[key][view[1] : view[1] + view[2]] if view else storages[key]

    return load


def fill(storages: dict[str, Tensor], key: str, stream: BinaryIO) -> None:
    count = int.from_bytes(stream.read(8), "little")
    if key not in storages or storages[key].numel() != count:
        raise ValueError(f"storage {key} has {count} elements, not those that the pickle announced")
    dtype = storages[key].dtype
    storages[key].copy_(typed(stream.read(count * dtype.itemsize), dtype, count))
