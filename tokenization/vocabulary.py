"""The file `vocab.txt` of BERT's family, read by the rules of bert4keras, whose models it numbers."""

import os
from pathlib import Path

SPECIAL_TOKENS = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}


def read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """The ids of a vocabulary file: UTF-8, one token a line, numbered from 0.

    As bert4keras reads it: a token ends at the first white space of its line, and a line of white space alone is the
    empty token, which takes an id. Empty lines at the end are left out, since no token follows them.

    Raises ValueError for a token that occurs twice (bert4keras numbers lines by the tokens known so far, so that two
    tokens would share an id from there on), and for a file that lacks [PAD], [UNK], [CLS], [SEP] or [MASK]; OSError
    for a file that cannot be read.
    """
    path = Path(path)
    try:
        # Not splitlines(), which would also end lines at characters that may be tokens.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a vocabulary in UTF-8: {error}") from None
    tokens = [(line.split() or [""])[0] for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if token in vocabulary:
            first = vocabulary[token] + 1
            raise ValueError(f"{path}: line {number} repeats the token {token!r} of line {first}; a token has one id.")
        vocabulary[token] = number - 1
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not the vocab.txt of a BERT or a RoFormer.")
    return vocabulary


def write_vocabulary(vocabulary: dict[str, int], path: str | os.PathLike[str]) -> None:
    """Write the tokens of a vocabulary whose ids run from 0 without a gap, one a line."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    Path(path).write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
