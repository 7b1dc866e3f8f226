"""The lines, vocabularies and pairs of the tokenizer test, and the ids that bert4keras' own code gives them.

    PYTHONPATH=<bert4keras> python tests/golden/tokenizers/make.py

wants jieba and the module bert4keras.tokenizers. golden.json was made with jieba 0.42.1, Python 3.11 (Unicode 14) and
bert4keras at commit c1ae0dc5eff66d329ab3c5c7ee369124ddbb6f87, whose backend may be an empty stub: no model is run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path

import jieba

HERE = Path(__file__).parent
TEXTS = HERE.parents[2] / "data" / "zh_classics.jsonl.gz"
FRAGMENTS = json.loads((HERE / "fragments.json").read_text(encoding="utf-8"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
PIECES = "the hello world token model ing ed ly izer un able 20 19 2023 100 www com http ers ion re"
FEWEST_OCCURRENCES, FEWEST_IN_JIEBA, SAMPLE = 2, 100, 33


def lines() -> list[str]:
    """The fragments, then classical verses up to 10,000 lines; every fourth verse has a fragment in its middle."""
    records = map(json.loads, gzip.decompress(TEXTS.read_bytes()).decode("utf-8").splitlines())
    found = list(FRAGMENTS)
    for index, verse in enumerate(verse for record in records for verse in record["text"].split("\n")):
        half = len(verse) // 2
        middle = FRAGMENTS[index // 4 % len(FRAGMENTS)] if index % 4 == 0 else ""
        found.append(verse[:half] + middle + verse[half:])
    return found[:10000]


def character_vocabulary() -> list[str]:
    """Special tokens, what occurs twice in the lines, and pieces of words for letters and digits."""
    text = unicodedata.normalize("NFD", "".join(lines()).lower())
    counts = Counter(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cc", "Cf"))
    characters = sorted(c for c, count in counts.items() if count >= FEWEST_OCCURRENCES)
    continued = [f"##{c}" for c in characters if c.isascii() and c.isalnum()]
    pieces = [piece for piece in PIECES.split() if piece not in characters]
    return SPECIAL + characters + continued + pieces + [f"##{piece}" for piece in pieces]


def word_vocabulary() -> list[str]:
    """The same, and the words that jieba's dictionary counts often, among them some that are not Chinese."""
    entries = (line.decode("utf-8").split() for line in jieba.Tokenizer().get_dict_file())
    words = [word for word, count, *_ in entries if len(word) > 1 and int(count) >= FEWEST_IN_JIEBA]
    return list(dict.fromkeys(character_vocabulary() + words))


VOCABULARIES = {"characters": character_vocabulary, "words": word_vocabulary}


def pairs() -> list[tuple[str, str]]:
    """Each of the first twenty lines with its successor."""
    return list(zip(lines()[:20], lines()[1:21]))  # noqa: B905  (Python 3.7 runs bert4keras, too)


def digest(ids: list[list[int]]) -> str:
    """One hash over the ids of all lines."""
    return hashlib.sha256(json.dumps(ids).encode("ascii")).hexdigest()


def main() -> None:
    from bert4keras.tokenizers import Tokenizer

    answers = {}
    for level, vocabulary in VOCABULARIES.items():
        ids = {token: index for index, token in enumerate(vocabulary())}
        cut = {"pre_tokenize": lambda text: jieba.cut(text, HMM=False)} if level == "words" else {}
        tokenizer = Tokenizer(ids, do_lower_case=True, **cut)
        found = [tokenizer.encode(line)[0] for line in lines()]
        answers[level] = {
            "vocabulary": hashlib.sha256("\n".join(ids).encode("utf-8")).hexdigest(),
            "size": len(ids),
            "digest": digest(found),
            "fragments": found[: len(FRAGMENTS)],
            "sample": found[len(FRAGMENTS) :: SAMPLE],
            "pairs": [tokenizer.encode(*pair) for pair in pairs()],
        }
    (HERE / "golden.json").write_text(json.dumps(answers, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
