"""Finds the files of a checkpoint: a file, a folder, a sharded one, or a repository of the Hub."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from .bundle import INDEX, data_files, index_of

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PATTERNS = (
    "*.safetensors.index.json",
    "*.bin.index.json",
    "checkpoint_last.pt",
    "checkpoint_best.pt",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.bin",
    "model.safetensors",
    "*.safetensors",
    "*.index",
)
POINTER = re.compile(r'^model_checkpoint_path: "(.+)"$', re.MULTILINE)


def local(source: str | os.PathLike[str]) -> Path:
    """`source` on this machine: a path that exists, the index of the bundle that it names, or the downloaded snapshot
    of a Hub repository.

    FileNotFoundError where it is none of these.
    """
    path = Path(source)
    if path.exists():
        return path
    index = index_of(path) or path.with_name(path.name + INDEX)
    if index.is_file():
        return index
    if not isinstance(source, str) or not REPOSITORY.fullmatch(source):
        raise FileNotFoundError(f"{source} does not exist, and is no Hub id of the form owner/name")
    try:
        return Path(snapshot_download(source))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{source} is no file or folder here and cannot be read from the Hub: {reason}"
        ) from error


def checkpoint_files(path: Path, patterns: Sequence[str] = PATTERNS) -> list[Path]:
    """The files of the checkpoint at `path`, the first pattern that matches a folder's files deciding.

    A file may be one of several: the index of a sharded checkpoint, or any file of a TensorFlow bundle.
    FileNotFoundError where there is none, ValueError where several match: one is then to be named.
    """
    if path.is_file():
        return with_shards(path)
    for pattern in patterns:
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if len(found) > 1:
            found = [file for file in found if file.name == pointed(path)] or found
        if len(found) > 1:
            raise ValueError(f"{path} holds several checkpoints, name one: {', '.join(file.name for file in found)}")
        if found:
            return with_shards(found[0])
    raise FileNotFoundError(f"{path} holds no checkpoint file ({', '.join(patterns)})")


def with_shards(file: Path) -> list[Path]:
    """`file` and the others that belong to it, the index first."""
    if file.name.endswith(".index.json"):
        return shards(file)
    index = index_of(file)
    return [file] if index is None else [index, *data_files(index)]


def pointed(folder: Path) -> str:
    """The index that TensorFlow's text file `checkpoint` names as the latest of the folder; "" where there is none."""
    pointer = folder / "checkpoint"
    match = POINTER.search(pointer.read_text("utf-8", "replace")) if pointer.is_file() else None
    return Path(match[1]).name + INDEX if match else ""


def shards(index: Path) -> list[Path]:
    """The index of a sharded checkpoint and the files that it names."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a sharded checkpoint: {type(error).__name__}: {error}") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is missing")
    return [index, *(index.parent / name for name in names)]
