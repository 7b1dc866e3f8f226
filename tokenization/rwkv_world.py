"""RWKV's World tokenizer: the longest token that fits, byte by byte, over the vocabulary that the checkpoints name.

A search over bytes without merges or words has no counterpart among the models of a `tokenizer.json`, so this is a
class with the published vocabulary file.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

END_OF_TEXT = "<|rwkv_tokenizer_end_of_text|>"
# In a node of the trie, where bytes are keys, the token that ends there.
TOKEN = -1


class NoriaRWKVTokenizer(PreTrainedTokenizer):
    """The tokenizer whose ids are those of the original `TRIE_TOKENIZER(vocab_file).encode(text)`.

    From left to right, the longest token of the vocabulary that the UTF-8 bytes go on with. Nothing is put in front of
    a text or behind it, and nothing is unknown. Id 0, which is not in the file, is the end of a text, its beginning
    and the padding as well; it is written `<|rwkv_tokenizer_end_of_text|>`, and `<|endoftext|>` is plain text.

    A token is the text of its bytes. Where these are no UTF-8, a byte that cannot be decoded stands as the surrogate
    that Python's `surrogateescape` makes of it. `decode` joins bytes before it reads them, and writes U+FFFD for what
    is no UTF-8, such as a character of which half has been generated; the original writes U+FFFD for the whole text.

    vocab_file: as published (`rwkv_vocab_v20230424.txt`), which `save_pretrained` writes again. Raises ValueError for
    a file that `read_world_vocabulary` refuses, and UnicodeEncodeError for a text with lone surrogates. Offsets into
    the text are not available: ValueError.
    """

    vocab_files_names = {"vocab_file": "rwkv_vocab_v20230424.txt"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(self, vocab_file: str | os.PathLike[str] | None = None, **kwargs: Any):
        if vocab_file is None:
            name = self.vocab_files_names["vocab_file"]
            raise ValueError(f"the folder holds no {name}, which this tokenizer reads its tokens from.")
        self._tokens = [END_OF_TEXT, *map(as_text, read_world_vocabulary(vocab_file))]
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        self._trie = make_trie(self._tokens[1:])
        defaults = {"clean_up_tokenization_spaces": False, "token_type_ids_pattern": "all_zeros"}
        defaults |= dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
        super().__init__(**{**defaults, **kwargs})

    @property
    def vocab_size(self) -> int:
        """The number of ids, 0 and those of the file; `len(tokenizer)` counts added tokens too."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens, added ones included."""
        return {**self._ids, **self._added_tokens_encoder}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The tokens of a text; added ones that it spells out are found, unless `split_special_tokens=True`."""
        # transformers looks for added tokens character by character, which takes longer than all the rest.
        if any(token in text for token in self._added_tokens_encoder):
            return super().tokenize(text, **kwargs)
        return self._tokenize(text)

    def _encode_plus(self, *args: Any, return_offsets_mapping: bool = False, **kwargs: Any):
        if return_offsets_mapping:
            raise ValueError("return_offsets_mapping=True: tokens of bytes have no offsets into the text.")
        return super()._encode_plus(*args, **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        source, trie, tokens, start = text.encode("utf-8"), self._trie, [], 0
        length = len(source)
        while start < length:
            node, place = trie, start
            # Every byte is a token, so that one is found before the first miss.
            while place < length and (node := node.get(source[place])) is not None:
                place += 1
                if TOKEN in node:
                    token, end = node[TOKEN], place
            tokens.append(token)
            start = end
        return tokens

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int | None] | None:
        """The id of a token, or the ids of several; None for what is no token."""
        # One pass: a call for each token, as transformers makes it, takes as long as finding the tokens.
        added, ids = self._added_tokens_encoder, self._ids
        if isinstance(tokens, str):
            return added.get(tokens, ids.get(tokens))
        return [added[token] if token in added else ids.get(token) for token in tokens]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._tokens):
            return ""  # models have more rows than the vocabulary: 65,536
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the tokens' bytes, U+FFFD where they are no UTF-8."""
        return "".join(tokens).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary in the published form; returns its path."""
        path = Path(save_directory) / "-".join(filter(None, (filename_prefix, self.vocab_files_names["vocab_file"])))
        write_world_vocabulary(map(as_bytes, self._tokens[1:]), path)
        return (str(path),)


# Whatever saves the tokenizer saves this code with it: without noria, it loads by trust_remote_code or not at all.
NoriaRWKVTokenizer.register_for_auto_class("AutoTokenizer")


def as_text(token: bytes) -> str:
    """A token as a string from which `as_bytes` has it back."""
    return token.decode("utf-8", "surrogateescape")


def as_bytes(token: str) -> bytes:
    """The bytes of a token."""
    return token.encode("utf-8", "surrogateescape")


def make_trie(tokens: Iterable[str]) -> dict[int, Any]:
    """Nested dictionaries, one for each beginning of a token, with the next bytes as keys."""
    root: dict[int, Any] = {}
    for token in tokens:
        node = root
        for byte in as_bytes(token):
            node = node.setdefault(byte, {})
        node[TOKEN] = token
    return root


def read_world_vocabulary(path: str | os.PathLike[str]) -> list[bytes]:
    """The tokens of ids 1, 2, ... in a World vocabulary: UTF-8; each line has an id, a Python literal, its byte count.

    Raises ValueError for a line that has another form, another id than its number or another length than it says, for
    a token that occurs twice, and for a file that lacks one of the 256 single bytes, which every text is made of;
    OSError for a file that cannot be read.
    """
    path = Path(path)
    try:
        # Not splitlines(), which would also end lines at characters that may stand in a literal.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a World vocabulary in UTF-8: {error}") from None
    if not lines[-1]:
        lines.pop()
    first: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        token = read_line(line, number)
        if token is None:
            raise ValueError(f"{path}: line {number} is not `{number} literal length`, but {line[:60]!r}.")
        if first.setdefault(token, number) != number:
            raise ValueError(f"{path}: line {number} repeats the token {token!r} of line {first[token]}.")
    missing = [byte for byte in range(256) if bytes([byte]) not in first]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} of the 256 single bytes, among them {bytes(missing[:1])!r}.")
    return list(first)


def read_line(line: str, number: int) -> bytes | None:
    """The token of one line, or None where the line is not that of this number."""
    index, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    if index != str(number):
        return None
    if literal[:1] in ("'", '"') and literal[0] == literal[-1] and not {"\\", literal[0]} & set(literal[1:-1]):
        token = literal[1:-1]  # most are plain, and reading these by Python's grammar takes ten times as long
    else:
        try:
            token = ast.literal_eval(literal)
        except (SyntaxError, ValueError):
            return None
    token = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token
    return token if isinstance(token, bytes) and token and str(len(token)) == length else None


def write_world_vocabulary(tokens: Iterable[bytes], path: str | os.PathLike[str]) -> None:
    """Write tokens as `read_world_vocabulary` reads them, text where they are UTF-8."""
    lines = []
    for number, token in enumerate(tokens, 1):
        try:
            literal = repr(token.decode("utf-8"))
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{number} {literal} {len(token)}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")
