"""Tokenizers that transformers has itself: a converted model takes their files along as they are."""

import shutil
from collections.abc import Callable
from pathlib import Path

from .checkpoint import Checkpoint

NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def copy_tokenizer(checkpoint: Checkpoint) -> Callable[[Path], None] | None:
    """Copies the tokenizer's files beside the checkpoint into a folder; None where there is no tokenizer."""
    files = {name: file for name, file in checkpoint.companions.items() if name in NAMES}
    if "tokenizer.json" not in files:
        return None

    def write(folder: Path) -> None:
        for name, file in files.items():
            shutil.copyfile(file, folder / name)

    return write
