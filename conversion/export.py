"""noria.export: a converted folder becomes the upstream's own checkpoint again."""

import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from .bundle_write import write_bundle
from .convert import EXTRAS, RECORD, UPSTREAM, WEIGHTS
from .formats import find_format
from .layout import decode
from .msgpack_file import write_msgpack
from .raw_bytes import write_safetensors
from .rules import undo
from .source import local, shards
from .target import atomic_folder, check_target

logger = logging.getLogger(__name__)


def export(format: str, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Writes the model `source` (a folder or Hub id that `convert` made) as a checkpoint of the upstream `format`.

    The folder `target` gets the files that were converted, under their own names and with their own nesting. Tensors
    come from the model as it is now, the rest from `upstream_extras.safetensors` and `conversion.json`; an unchanged
    model gives every tensor back with its name, dtype and bytes. Objects refused on reading are left out.

    Returns the target. Raises ValueError where the folder lacks its `conversion.json` or a tensor, or was converted
    from another format; FileNotFoundError, FileExistsError (the target is not empty) or another OSError for paths.
    """
    family, folder = find_format(format), Path(target)
    check_target(folder)
    model = local(source)
    record = read_record(model, format)
    tensors = read_weights(model)
    extras = load(model / EXTRAS) if record["extras"] else {}
    missing = [name for name in record["extras"] if name not in extras]
    if missing:
        raise ValueError(f"{model / EXTRAS} lacks {', '.join(missing[:6])}")
    rules = family.rules(AutoConfig.from_pretrained(model))
    made = undo(rules, record["rules"], tensors)
    state = extras | {record["prefix"] + name: tensor for name, tensor in made.items()}
    with atomic_folder(folder) as part:
        for file in record["files"]:
            logger.info("writing %s", folder / file["name"])
            if file["container"] == "companion":
                shutil.copyfile(model / UPSTREAM / file["name"], part / file["name"])
                continue
            write_file(part, file, state, record.get("dropped", {}))
    return folder


def read_record(model: Path, format: str) -> dict[str, Any]:
    if not (model / RECORD).is_file():
        raise ValueError(f"{model} has no {RECORD}: only a folder that convert wrote can be exported")
    try:
        record = json.loads((model / RECORD).read_text("utf-8"))
        names = [file["name"] for file in record["files"]]
        made_from, _, _, _ = (record[key] for key in ("format", "prefix", "rules", "extras"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{model / RECORD} is damaged: {type(error).__name__}: {error}") from error
    if made_from != format:
        raise ValueError(f"{model} was converted from {made_from!r} and cannot be exported as {format!r}")
    if any(Path(name).name != name or name == ".." for name in names):
        raise ValueError(f"{model / RECORD} names a file outside the target")
    return record


def read_weights(model: Path) -> dict[str, Tensor]:
    """The model's tensors, from one file or from shards."""
    index = model / f"{WEIGHTS}.index.json"
    files = shards(index)[1:] if index.is_file() else [model / WEIGHTS]
    return {name: tensor for file in files for name, tensor in load(file).items()}


def load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def write_file(
    part: Path, file: Mapping[str, Any], tensors: Mapping[str, Tensor], dropped: Collection[str] = ()
) -> None:
    """One file of the upstream, in its own container, without its `dropped` tensors."""
    path, layout = part / file["name"], file["layout"]
    if file["container"] == "json":
        path.write_text(json.dumps(layout, indent=2) + "\n", "utf-8")
    elif file["container"] == "safetensors":
        write_safetensors(path, {name: tensors[name] for name in layout if name not in dropped}, file["metadata"])
    elif file["container"] == "bundle":
        shards = [[name for name in names if name not in dropped] for names in layout["shards"]]
        write_bundle(path, tensors, shards, layout["version"])
    elif file["container"] == "msgpack":
        write_msgpack(path, layout, tensors)
    elif file["container"] != "bundle data":
        content = decode(layout, dict(tensors), dropped)
        torch.save(content, path, _use_new_zipfile_serialization=file["container"] == "zip")
