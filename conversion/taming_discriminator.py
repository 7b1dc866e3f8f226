"""The discriminator in a checkpoint's losses, written beside the model for those who go on training it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .raw_bytes import write_safetensors
from .taming_settings import Constructor

LOSS = "loss."
DISCRIMINATOR = f"{LOSS}discriminator."
WEIGHTS, SETTINGS = "discriminator.safetensors", "discriminator.json"


def discriminator_writer(tensors: Mapping[str, Tensor], loss: Constructor) -> Callable[[Path], None] | None:
    """Writes the weights as PatchDiscriminator names them, and its arguments with those of the loss, into a folder.

    None where the checkpoint has no discriminator.
    """
    state = {name.removeprefix(DISCRIMINATOR): x for name, x in tensors.items() if name.startswith(DISCRIMINATOR)}
    first = state.get("main.0.weight")
    if first is None:
        return None
    settings = {"discriminator": shape_of(state, first), "loss": stated(loss)}

    def write(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS, state, {"format": "pt"})
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, default=str) + "\n", "utf-8")

    return write


def shape_of(state: Mapping[str, Tensor], first: Tensor) -> dict[str, Any]:
    """The arguments of PatchDiscriminator."""
    convolutions = sum(tensor.dim() == 4 and name.endswith(".weight") for name, tensor in state.items())
    return {
        "num_channels": first.shape[1],
        "hidden_size": first.shape[0],
        "num_hidden_layers": convolutions - 2,
        "norm": "act" if any(name.endswith(".loc") for name in state) else "batch",
    }


def stated(loss: Constructor) -> dict[str, Any]:
    """The upstream's arguments of the loss, by their own names; empty where no file tells them."""
    return {**loss.from_file, **loss.given}
