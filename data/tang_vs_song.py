"""The embedded classification task: was a poem written under the Tang or under the Song?

All poems have one form (eight lines of seven characters, 64 characters with their punctuation) and one script
(traditional), so that neither length nor spelling gives the answer away.
"""

from dataclasses import dataclass

from .lines import json_lines

LABELS = ("tang", "song")


@dataclass(frozen=True)
class Poem:
    """One poem of 64 characters; `label` is the index of its dynasty in LABELS."""

    text: str
    label: int


def tang_vs_song() -> tuple[list[Poem], list[Poem]]:
    """Reads the 7,000 training and the 1,000 test poems in the files' order; no text lies on both sides."""
    train, test = (
        [Poem(row["text"], row["label"]) for row in json_lines(f"zh_tang_vs_song.{side}")]
        for side in ("train", "test")
    )
    return train, test
