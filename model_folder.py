"""What a folder that `save_pretrained` wrote says about the model in it, without loading the model."""

import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .registry import ARCHITECTURES, Architecture

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in `folder`; raises ValueError where there is none that can be read."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: a folder that `save_pretrained` wrote is wanted.")
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no saved model: {CONFIG} is missing.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, not the fields of a configuration.")
    return config


def find_architecture(model_type: str | None) -> Architecture:
    """The row of the table for a model type; raises ValueError for one that is not noria's."""
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"model type {model_type!r} is not an architecture of noria; known: {known}.")
    return ARCHITECTURES[model_type]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`; raises ValueError where there are none, or not all of them."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        raise ValueError(f"{folder} holds no weights: {WEIGHTS} is missing.")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which {index.name} lists.")
    return [folder / name for name in names]


def count_parameters(folder: Path) -> int:
    """Numbers in the weight files of `folder`, tied ones counted once; only headers are read.

    Raises ValueError for a file that is not a whole safetensors file.
    """
    total = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (no dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}.") from None
    return total
