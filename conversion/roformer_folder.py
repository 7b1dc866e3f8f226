"""What the folders of RoFormer checkpoints have in common: telling names, and a vocabulary."""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..tokenization.roformer import write_tokenizer
from ..tokenization.vocabulary import read_vocabulary, write_vocabulary
from .checkpoint import Checkpoint
from .settings import Settings

VOCABULARY, TOKENIZER, TOKENIZER_CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
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


def vocabulary_of(checkpoint: Checkpoint) -> dict[str, int] | None:
    """The ids of the tokens by vocab.txt, else by a tokenizer.json of word pieces; None where there is neither."""
    if VOCABULARY in checkpoint.companions:
        return read_vocabulary(checkpoint.companions[VOCABULARY])
    model = checkpoint.read_json(TOKENIZER).get("model", {})
    return model["vocab"] if model.get("type") == "WordPiece" else None


def special_ids(checkpoint: Checkpoint, vocab_size: int, writes: bool) -> dict[str, int]:
    """Where a model that writes begins and ends, by its vocabulary: [CLS] and [SEP].

    ValueError where the vocabulary holds more tokens than the model.
    """
    ids = vocabulary_of(checkpoint) or {}
    if len(ids) > vocab_size:
        raise ValueError(f"{VOCABULARY} holds {len(ids)} tokens, but the model only {vocab_size}")
    places = {"bos_token_id": "[CLS]", "eos_token_id": "[SEP]"} if writes else {}
    return {name: ids[token] for name, token in places.items() if token in ids}


def level_of(name: str) -> Any:
    """ "characters" or "words" where a published name tells it; None leaves it to the vocabulary."""
    if re.search(r"[-_]char(?![a-z])", name):
        return "characters"
    return "words" if re.match(r"chinese_roformer_L-\d", name) else None


def tokenizer_writer(checkpoint: Checkpoint) -> Callable[[Path], Any] | None:
    """What writes the tokenizer of the checkpoint's vocabulary into a folder; None where there is no tokenizer.

    A tokenizer.json of another kind than RoFormer's is copied as it is.
    """
    vocabulary = vocabulary_of(checkpoint)
    if vocabulary is not None:
        level = level_of(checkpoint.name)
        if level is None and str(checkpoint.read_json(TOKENIZER_CONFIG).get("tokenizer_class")).startswith("Bert"):
            level = "characters"
        return lambda folder: write(vocabulary, folder, level)
    if TOKENIZER not in checkpoint.companions:
        return None
    files = [checkpoint.companions[name] for name in (TOKENIZER, TOKENIZER_CONFIG) if name in checkpoint.companions]
    return lambda folder: [shutil.copyfile(file, folder / file.name) for file in files]


def write(vocabulary: dict[str, int], folder: Path, level: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        write_vocabulary(vocabulary, Path(place) / VOCABULARY)
        try:
            write_tokenizer(Path(place) / VOCABULARY, folder, level)
        except ImportError as error:
            raise ValueError(str(error)) from error
