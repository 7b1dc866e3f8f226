"""The tokenizers of RoFormer checkpoints, from the `vocab.txt` that the published archives hold."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from .chinese import is_word
from .roformer_characters import wordpiece_tokenizer
from .roformer_words import NoriaRoFormerTokenizer
from .vocabulary import read_vocabulary

Level = Literal["characters", "words"]

# The published word vocabulary is made of words for the most part, a character vocabulary holds next to none.
MOST_WORDS_OF_CHARACTERS, FEWEST_WORDS_OF_WORDS = 0.01, 0.2


def write_tokenizer(
    vocab_file: Path, folder: Path, level: Level | None = None, max_length: int | None = None
) -> Level:
    """Write the tokenizer of a RoFormer, a RoFormer-V2 or a GAU-alpha into `folder`; returns its level.

    vocab_file: as published. folder: made where it is missing. level: `"characters"` writes a `tokenizer.json` that
    loads without noria; `"words"` writes `vocab.txt` with the name of NoriaRoFormerTokenizer, and wants jieba; None
    reads it from the name of the file's folder (`...-char_...`) or else from the vocabulary. max_length: where
    `truncation=True` cuts; None sets no limit.

    Raises ValueError for another level, for one that cannot be told, and for a vocabulary that `read_vocabulary`
    refuses; ImportError for words without jieba; OSError for paths.
    """
    vocab_file, folder = Path(vocab_file), Path(folder)
    vocabulary = read_vocabulary(vocab_file)
    if level is None:
        named = re.search(r"[-_]char(?![a-z])", vocab_file.resolve().parent.name)
        level = "characters" if named else guess_level(vocabulary)
    if level == "characters":
        tokenizer = wordpiece_tokenizer(vocabulary, max_length=max_length)
    elif level == "words":
        limit = {} if max_length is None else {"model_max_length": max_length}
        tokenizer = NoriaRoFormerTokenizer(vocab_file, **limit)
    else:
        raise ValueError(f"level is {level!r}; it can be 'characters' or 'words'.")
    tokenizer.save_pretrained(folder)
    return level


def guess_level(vocabulary: Iterable[str]) -> Level:
    """Whether the tokens of a vocabulary are those of a character model or of a word model.

    Fewer than one token in 100 is a Chinese word of two or more characters: characters; at least one in five: words.
    Raises ValueError for what lies between.
    """
    tokens = list(vocabulary)
    share = sum(map(is_word, tokens)) / max(1, len(tokens))
    if share < MOST_WORDS_OF_CHARACTERS:
        return "characters"
    if share >= FEWEST_WORDS_OF_WORDS:
        return "words"
    raise ValueError(
        f"{share:.1%} of {len(tokens)} tokens are Chinese words, too many for a character model, too few for a word "
        "model: say level='characters' or level='words'."
    )
