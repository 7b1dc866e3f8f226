"""The tokenizer of RoFormer's word models: jieba cuts the text, and WordPiece takes what the vocabulary lacks.

A cutter written in Python has no place in a `tokenizer.json`, so this is a class with a `vocab.txt`.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizer

from .chinese import is_ideograph, is_word, join
from .vocabulary import SPECIAL_TOKENS, read_vocabulary, write_vocabulary

LONGEST_WORD = 200


class NoriaRoFormerTokenizer(PreTrainedTokenizer):
    """The tokenizer whose ids are those of bert4keras' `Tokenizer(vocab, do_lower_case=True, pre_tokenize=cut)`.

    `cut` is `jieba.cut(text, HMM=False)` with jieba's own dictionary: words of the vocabulary are not added to it, and
    what the process adds to jieba elsewhere has no effect. Text is lower-cased, decomposed and stripped of accents,
    then cut; a word that the vocabulary lacks falls back to its characters and word pieces. One text becomes
    `[CLS] A [SEP]`, two become `[CLS] A [SEP] B [SEP]` with token types 0 and 1; a prompt for generation is the same
    without the last `[SEP]`. `decode` writes Chinese without spaces.

    One difference from bert4keras is meant: `[MASK]` and the other special tokens, written out in a text, are these
    tokens, as everywhere in transformers. `split_special_tokens=True` reads them as bert4keras does, as plain text.

    vocab_file: a `vocab.txt`, which `save_pretrained` writes again. Raises ImportError without jieba, ValueError for a
    vocabulary that `read_vocabulary` refuses or that holds no Chinese word of two or more characters: that of a
    character model, which `wordpiece_tokenizer` takes. Offsets into the text are not available: ValueError.
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    def __init__(self, vocab_file: str | os.PathLike[str] | None = None, **kwargs: Any):
        if vocab_file is None:
            raise ValueError("the folder holds no vocab.txt, which this tokenizer reads its words from.")
        import_jieba()
        self._ids = read_vocabulary(vocab_file)
        self._tokens = {index: token for token, index in self._ids.items()}
        if not any(map(is_word, self._ids)):
            raise ValueError(
                f"{vocab_file} holds no Chinese word of two or more characters: it belongs to a character model, "
                "whose tokenizer is made with level='characters'."
            )
        defaults = {"special_tokens_pattern": "cls_sep", "clean_up_tokenization_spaces": False, **SPECIAL_TOKENS}
        super().__init__(**{**defaults, **kwargs})

    @property
    def vocab_size(self) -> int:
        """The number of tokens in `vocab.txt`; `len(tokenizer)` counts added ones too."""
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens, added ones included."""
        return {**self._ids, **self._added_tokens_encoder}

    def _encode_plus(self, *args: Any, return_offsets_mapping: bool = False, **kwargs: Any):
        if return_offsets_mapping:
            raise ValueError("return_offsets_mapping=True: a tokenizer that cuts words with jieba knows no offsets.")
        return super()._encode_plus(*args, **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        tokens: list[str] = []
        for word in segmenter().cut(normalize(text), HMM=False):
            if word in self._ids:
                tokens.append(word)
            else:
                for unit in word.translate(_APART).split():
                    tokens += pieces(unit, self._ids)
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids[SPECIAL_TOKENS["unk_token"]])

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens.get(index, SPECIAL_TOKENS["unk_token"])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens as readable text, Chinese without spaces."""
        return join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt`; returns its path."""
        path = Path(save_directory) / "-".join(filter(None, (filename_prefix, self.vocab_files_names["vocab_file"])))
        write_vocabulary(self._ids, path)
        return (str(path),)


# Whatever saves the tokenizer saves this code with it: without noria, it loads by trust_remote_code or not at all.
NoriaRoFormerTokenizer.register_for_auto_class("AutoTokenizer")


def import_jieba() -> ModuleType:
    """The package jieba; raises ImportError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba's strings have escapes that newer Pythons complain about
            import jieba
    except ImportError:
        raise ImportError("word models cut text with jieba, which is missing: pip install noria[jieba]") from None
    return jieba


@cache
def segmenter() -> Any:
    """A `jieba.Tokenizer` with jieba's dictionary alone, made when a process first cuts a text."""
    words = import_jieba().Tokenizer()
    # What initialize() does, but without its lines on stderr, and without its cache in the folder for temporary files:
    # that one may be another user's or another version's, and it would decide over ids.
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True
    return words


def normalize(text: str) -> str:
    """Lower case without accents."""
    text = text.lower()
    return text if text.isascii() else unicodedata.normalize("NFD", text).translate(_WITHOUT_ACCENTS)


def pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """The longest pieces of the vocabulary from left to right; the word itself, an unknown token, where none fits."""
    if len(word) > LONGEST_WORD:
        return [word]
    found: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        candidates = (end for end in range(len(word), start, -1) if mark + word[start:end] in vocabulary)
        end = next(candidates, None)
        if end is None:
            return [word]
        found.append(mark + word[start:end])
        start = end
    return found


class _Translation(dict):
    """For `str.translate`: what `rule` makes of a character, asked once for each."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def apart(character: str) -> str:
    """Ideographs and punctuation between spaces, white space as a space, control characters as nothing."""
    category = unicodedata.category(character)
    # ASCII has symbols that Unicode does not count as punctuation, and BERT does.
    if category[0] == "P" or (character.isascii() and category[0] == "S") or is_ideograph(character):
        return f" {character} "
    if category == "Zs" or character in "\t\n\r":
        return " "
    return "" if category in ("Cc", "Cf") or character == "\ufffd" else character


_APART = _Translation(apart)
_WITHOUT_ACCENTS = _Translation(lambda character: "" if unicodedata.category(character) == "Mn" else character)
