"""The lines and the small vocabulary of the World tokenizer's test, and the ids that the original gives them.

    python tests/golden/rwkv_tokenizer/make.py

wants the package rwkv (golden.json was made with 0.8.32), whose module rwkv_tokenizer runs without torch and whose
published vocabulary gives the ids under `published`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
TEXTS = HERE.parents[2] / "data" / "zh_classics.jsonl.gz"
FRAGMENTS = json.loads((HERE.parent / "tokenizers" / "fragments.json").read_text(encoding="utf-8"))
WORDS = (
    "the of and a in is it you that he was for on are with as I his they be at one have this from or had by hot but"
)
MARKS = [
    ". ",
    ", ",
    ": ",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "(",
    ")",
    "<|endoftext|>",
    " 1998",
    "=",
    " == ",
    "_",
    "\r\n",
    "\x00",
]
LONGEST, OF_EACH_LENGTH, SAMPLE = 12, 150, 33


def lines() -> list[str]:
    """The fragments, then verses and made English up to 10,000 lines."""
    records = map(json.loads, gzip.decompress(TEXTS.read_bytes()).decode("utf-8").splitlines())
    draw = random.Random(0)
    found = list(FRAGMENTS)
    for verse in (verse for record in records for verse in record["text"].split("\n")):
        words = [draw.choice(WORDS.split()) for _ in range(draw.randrange(9))]
        english = "".join(draw.choice([" ", " ", " ", "", *MARKS]) + word for word in words)
        found.append(draw.choice([verse, english, verse + english, draw.choice(FRAGMENTS) + verse]))
    return found[:10000]


def vocabulary() -> list[bytes]:
    """All bytes, then the runs of 2 to 12 bytes that are most frequent in the lines, cut through characters or not."""
    sources = [line.encode("utf-8") for line in lines()[::8]]
    tokens = [bytes([byte]) for byte in range(256)]
    for length in range(2, LONGEST + 1):
        counts = Counter(line[i : i + length] for line in sources for i in range(len(line) - length + 1))
        likely = sorted(counts, key=lambda run: (-counts[run], run))
        tokens += sorted(likely[:OF_EACH_LENGTH])
    return tokens


def digest(value: object) -> str:
    """One hash over the ids of all lines."""
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()


def hash_of(path: Path) -> str:
    """Of the text: the package rwkv ends the lines of its vocabulary as Windows does."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode("utf-8")).hexdigest()


def write(path: Path) -> None:
    """The small vocabulary, in the published form."""
    with path.open("w", encoding="utf-8") as file:
        for number, token in enumerate(vocabulary(), 1):
            try:
                literal = repr(token.decode("utf-8"))
            except UnicodeDecodeError:
                literal = repr(token)
            file.write(f"{number} {literal} {len(token)}\n")


def main() -> None:
    original = Path(next(iter(find_spec("rwkv").submodule_search_locations)))
    sys.path.insert(0, str(original))
    from rwkv_tokenizer import TRIE_TOKENIZER

    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / "vocabulary.txt")
        published = original / "rwkv_vocab_v20230424.txt"
        for name, path in (("small", Path(scratch) / "vocabulary.txt"), ("published", published)):
            tokenizer = TRIE_TOKENIZER(path)
            found = [tokenizer.encode(line) for line in lines()]
            answers[name] = {
                "vocabulary": hash_of(path),
                "size": len(tokenizer.idx2token),
                "digest": digest(found),
                "fragments": found[: len(FRAGMENTS)],
                "sample": found[len(FRAGMENTS) :: SAMPLE] if name == "small" else [],
            }
    (HERE / "golden.json").write_text(json.dumps(answers, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
