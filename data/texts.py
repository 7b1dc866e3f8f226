"""The embedded text sample: short Chinese classics, one record a text, with a split that never changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from .held_out import by_content
from .lines import json_lines

GENRES = ("唐诗", "宋词", "诗经", "元曲", "论语", "孟子")


@dataclass(frozen=True)
class Record:
    """One text: its `genre` (one of GENRES), `title`, `author` (may be empty) and the `text` itself, lines kept."""

    genre: str
    title: str
    author: str
    text: str


def classics() -> list[Record]:
    """Reads the 3,653 records of `zh_classics.jsonl.gz` in the file's order, from a checkout or a wheel."""
    return [Record(**row) for row in json_lines("zh_classics")]


def licence(source: str = "chinese-poetry") -> str:
    """The licence under which the sample is shipped, as its source states it.

    Raises ValueError where no such source is shipped.
    """
    folder = files(__package__).joinpath("licences")
    texts = {file.name.split(".")[0]: file for file in folder.iterdir() if file.name.endswith(".txt")}
    if source not in texts:
        raise ValueError(f"no licence of {source!r} is shipped; known sources: {', '.join(sorted(texts))}")
    return texts[source].read_text(encoding="utf-8")


def split(records: Sequence[Record], held_out: float = 0.05) -> tuple[list[Record], list[Record]]:
    """Splits records into (train, held out); the share `held_out` is met on average.

    The side depends on the record's text alone (its SHA-256), so that it does not change with the order or the number
    of the records, and equal texts never lie on both sides. Raises ValueError unless 0 <= held_out <= 1.
    """
    return by_content(records, lambda record: record.text.encode("utf-8"), held_out)
