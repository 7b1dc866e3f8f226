"""A checkpoint as it is read: tensors by name, the plain rest, and where each stood, to be written again."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .bundle import DATA_NAME, INDEX, is_v1_checkpoint, read_bundle
from .layout import Encoder
from .msgpack_file import is_msgpack, read_msgpack
from .symbols import mapping
from .torch_file import read_torch

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """`state`: the model's tensors by their upstream names. `others`: tensors outside the state dict, by path.

    `content` is what the file holds beside them, with inert objects (see `symbols`). `files` is JSON: name, hash,
    container and layout of each file; `refused` names the classes that were not read, `dropped` what was left out.
    `name` is what the source is called, its folder or repository; `companions` are the files beside the tensors that
    describe the model, by name.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    content: Any = None
    files: list[dict[str, Any]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    name: str = ""
    companions: dict[str, Path] = field(default_factory=dict)

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in the companion `name`, empty where there is none; ValueError where it is not a JSON object."""
        if name not in self.companions:
            return {}
        try:
            content = json.loads(self.companions[name].read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.companions[name]} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.companions[name]} holds {type(content).__name__}, not an object of settings")
        return content

    def add_companions(self, file: Path, names: Sequence[str]) -> None:
        """Takes along those files near `file`; of several with one name, the first."""
        for name in names:
            for path in sorted(file.parent.glob(name.format(stem=escape(file.stem)))):
                if path.is_file():
                    self.companions.setdefault(path.name, path)
        for name, path in self.companions.items():
            self.files.append({"name": name, "sha256": sha256(path), "container": "companion", "layout": None})

    def add(self, where: Path, state: dict[str, Tensor], others: dict[str, Tensor] | None = None) -> None:
        """Adds the tensors of one file; ValueError where another file has one of the same name."""
        for name, tensor in [*state.items(), *(others or {}).items()]:
            if name in self.state or name in self.others:
                raise ValueError(f"{where}: tensor {name!r} is also in another file of the checkpoint")
            (self.state if name in state else self.others)[name] = tensor

    def drop(self, name: str, reason: str) -> None:
        """Leaves out a tensor of `state` that is no part of the model, such as an optimizer's; export lacks it too."""
        del self.state[name]
        self.dropped[name] = reason


def read_checkpoint(files: Sequence[Path], state_keys: Sequence[str]) -> Checkpoint:
    """Reads torch and safetensors files (and the index of a sharded checkpoint, a JSON file) as one checkpoint.

    So too TensorFlow's bundles, an index and its data files, whose tensors of strings are dropped, and Flax's msgpack.

    `state_keys` are the keys under which a file may keep its state dict; ValueError where no tensors are found.
    """
    checkpoint = Checkpoint()
    for file in files:
        logger.info("reading %s, %.1f MB", file, file.stat().st_size / 1e6)
        record: dict[str, Any] = {"name": file.name, "sha256": sha256(file)}
        if file.suffix == ".json":
            record |= {"container": "json", "layout": json.loads(file.read_text("utf-8"))}
        elif file.suffix == ".safetensors":
            record |= read_safetensors(checkpoint, file)
        elif file.suffix == INDEX:
            record |= read_tensorflow(checkpoint, file)
        elif DATA_NAME.fullmatch(file.name):
            record |= {"container": "bundle data", "layout": None}
        elif is_msgpack(file):
            record |= read_flax(checkpoint, file)
        else:
            record |= read_pickled(checkpoint, file, state_keys)
        checkpoint.files.append(record)
    if not checkpoint.state:
        raise ValueError(f"{files[0]} holds no tensors where a state dict is expected")
    return checkpoint


def read_safetensors(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata()
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    checkpoint.add(file, tensors)
    return {"container": "safetensors", "metadata": metadata, "layout": list(tensors)}


def read_tensorflow(checkpoint: Checkpoint, index: Path) -> dict[str, Any]:
    bundle = read_bundle(index)
    checkpoint.add(index, bundle.tensors)
    checkpoint.dropped |= bundle.dropped
    return {"container": "bundle", "layout": bundle.layout}


def read_flax(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """A model's variables, or its parameters alone. What else stands beside `params` is no part of the model."""
    read = read_msgpack(file)
    collections = ("params.", "batch_stats.")
    whole = any(name.startswith("params.") for name in read.tensors)
    state = {name: tensor for name, tensor in read.tensors.items() if not whole or name.startswith(collections)}
    others = {name: tensor for name, tensor in read.tensors.items() if name not in state}
    checkpoint.add(file, state, others)
    checkpoint.dropped |= read.dropped
    return {"container": "msgpack", "layout": read.layout}


def read_pickled(checkpoint: Checkpoint, file: Path, state_keys: Sequence[str]) -> dict[str, Any]:
    if is_v1_checkpoint(file):
        raise ValueError(f"{file} is a TensorFlow V1 checkpoint, a format of one file that is not read; save it as V2")
    content, container, refused = read_torch(file)
    path = state_path(content, state_keys)
    encoder = Encoder(path)
    try:
        layout = encoder.encode(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    checkpoint.add(file, encoder.state, encoder.others)
    checkpoint.refused |= refused | encoder.refused
    checkpoint.dropped |= encoder.dropped
    checkpoint.content = content if checkpoint.content is None else checkpoint.content
    return {"container": container, "layout": layout}


def state_path(content: Any, state_keys: Sequence[str]) -> tuple[str, ...]:
    """Where the state dict stands: under one of `state_keys`, or the content itself."""
    root = mapping(content)
    if root is None:
        raise ValueError(f"the file holds a {content!r}, not a state dict"[:200])
    return next(((key,) for key in state_keys if mapping(root.get(key)) is not None), ())


def sha256(file: Path) -> str:
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()
