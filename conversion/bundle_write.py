"""Writes TensorFlow's V2 checkpoints ("tensor bundles"), byte for byte as TensorFlow does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bundle import INDEX, shard_name
from .bundle_messages import NUMBERS, Entry, Header
from .crc32c import crc32c, masked
from .raw_bytes import raw_bytes
from .sstable import write_table


def write_bundle(
    path: Path,
    tensors: Mapping[str, Any],
    shards: Sequence[Sequence[str]] | None = None,
    version: Mapping[str, Any] | None = None,
) -> Path:
    """Writes tensors, or arrays, as the bundle `path` (X or X.index): X.index and X.data-00000-of-00001, ...

    `shards` names the tensors of each data file in their order; None puts all into one, by name as TensorFlow's Saver
    does. `version` holds the versions of the format that the index states: producer, min_consumer, bad_consumers.
    Both are those of a `Bundle.layout`. One tensor at a time is made contiguous.

    Returns the index. ValueError for a name or a dtype that the format lacks, and for a name in `shards` that has no
    tensor or comes twice.
    """
    index = path if path.suffix == INDEX else path.with_name(path.name + INDEX)
    shards = [sorted(tensors, key=str.encode)] if shards is None else shards
    check_names(tensors, [name for names in shards for name in names])
    entries: dict[str, Entry] = {}
    for shard, names in enumerate(shards):
        with index.with_name(shard_name(index, shard, len(shards))).open("wb") as stream:
            for name in names:
                content, dtype, shape = content_of(name, tensors[name])
                offset = stream.tell()
                stream.write(content)
                entries[name] = Entry(dtype, shape, shard, offset, content.nbytes, masked(crc32c(content)))
    stated = {**(version or {})}
    stated["bad_consumers"] = tuple(stated.get("bad_consumers", ()))
    pairs = sorted((name.encode(), entry.encode()) for name, entry in entries.items())
    index.write_bytes(write_table([(b"", Header(len(shards), **stated).encode()), *pairs]))
    return index


def check_names(tensors: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"there is no tensor {missing[0]!r}, which the layout of the bundle names")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the layout of the bundle names {min(twice)!r} twice")
    wrong = [name for name in names if not name or name.startswith("\0")]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be the name of a tensor in a bundle")


def content_of(name: str, value: Any) -> tuple[Any, int, tuple[int, ...]]:
    """The bytes of a tensor, TensorFlow's number of its dtype, and its shape."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if tensor.dtype not in NUMBERS:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}, which a bundle cannot hold")
    return raw_bytes(tensor).numpy(), NUMBERS[tensor.dtype], tuple(tensor.shape)
