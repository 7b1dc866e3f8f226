"""Writes the README's support table from the table of architectures and the laws that the suite runs over it.

python tests/support_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from architectures import ENTRIES

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- support-table:begin -->", "<!-- support-table:end -->"

# The laws in order, and the limits that an entry may have to each.
LAWS = {
    "forms agree": [],
    "causal": ["prompt"],
    "any cut": ["prompt"],
    "padding": [],
    "packing": ["packs in a cache"],
    "generate()": [],
    "rollback": [],
    "state": ["constant state"],
    "files": [],
    "training": ["reentrant carry"],
    "PEFT": [],
    "compile, export": [],
    "Hub code": [],
    "encoders": ["encoders"],
    "shapes": [],
}


def rows() -> list[str]:
    """The table in Markdown, one row for each architecture, and under it the reasons that its cells refer to."""
    reasons: list[str] = []
    lines = ["| architecture | " + " | ".join(LAWS) + " |", "|---" * (len(LAWS) + 1) + "|"]
    for name in dict.fromkeys(entry.name.split("-")[0] for entry in ENTRIES):
        limits = {law: reason for e in ENTRIES if e.name.split("-")[0] == name for law, reason in e.limits.items()}
        cells = []
        for names in LAWS.values():
            notes = [limits[limit] for limit in names if limit in limits]
            reasons += [note for note in notes if note not in reasons]
            cells.append("yes" + "".join(f" ({reasons.index(note) + 1})" for note in notes))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"{number}. {reason}." for number, reason in enumerate(reasons, start=1))]


def updated(text: str) -> str:
    """The README `text` with its table made anew. Raises ValueError where the markers are missing."""
    head, marker, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (marker and end):
        raise ValueError(f"README.md must hold the markers {BEGIN} and {END}.")
    return "\n".join([head + BEGIN, "", *rows(), "", END]) + tail


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
