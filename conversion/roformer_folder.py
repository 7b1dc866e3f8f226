"""What the folders of RoFormer checkpoints have in common: telling names and a `vocab.txt`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..tokenization.roformer import write_tokenizer
from ..tokenization.vocabulary import read_vocabulary
from .checkpoint import Checkpoint
from .settings import Settings

VOCABULARY = "vocab.txt"
SIZES = {"L": "num_hidden_layers", "H": "hidden_size", "A": "num_attention_heads"}


def check_name(settings: Settings, name: str, version: int) -> None:
    """Notes where a published name, as chinese_roformer-char_L-12_H-768_A-12, contradicts what it holds."""
    if re.search(r"_L-\d+_H-\d+", name):
        for letter, argument in SIZES.items():
            match = re.search(rf"_{letter}-(\d+)", name)
            found = settings.record.get(argument, {}).get("value")
            if match and found is not None and int(match[1]) != found:
                settings.wrong.append(f"{argument} is {found}, but the name {name!r} says {match[1]}")
    if version != 2 and re.search(r"roformer[-_]v2(?![0-9])", name):
        settings.wrong.append(f"the tensors are those of RoFormer v1, but the name {name!r} says v2")


def special_ids(vocabulary: Path | None, vocab_size: int, writes: bool) -> dict[str, int]:
    """Where a model that writes begins and ends, by its vocabulary: [CLS] and [SEP].

    ValueError where the vocabulary holds more tokens than the model.
    """
    if vocabulary is None:
        return {}
    ids = read_vocabulary(vocabulary)
    if len(ids) > vocab_size:
        raise ValueError(f"{vocabulary.name} holds {len(ids)} tokens, but the model only {vocab_size}")
    return {"bos_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"]} if writes else {}


def level_of(name: str) -> Any:
    """ "characters" or "words" where a published name tells it; None leaves it to the vocabulary."""
    if re.search(r"[-_]char(?![a-z])", name):
        return "characters"
    return "words" if re.match(r"chinese_roformer_L-\d", name) else None


def tokenizer_writer(checkpoint: Checkpoint) -> Callable[[Path], Any] | None:
    """What writes the tokenizer of the checkpoint's vocabulary into a folder; None where there is no vocabulary."""
    vocabulary = checkpoint.companions.get(VOCABULARY)
    if vocabulary is None:
        return None

    def write(folder: Path) -> None:
        try:
            write_tokenizer(vocabulary, folder, level_of(checkpoint.name))
        except ImportError as error:
            raise ValueError(str(error)) from error

    return write
