"""The table and the chart of what `positions.py` has measured.

python examples/positions_chart.py noria-positions
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from noria.cli import Parser

LENGTHS = (64, 128, 256, 512)
COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#d7301f")
Spread = tuple[float, float]


def summary(runs: Sequence[dict[str, Any]], encoding: str, length: int, measure: str) -> Spread | None:
    """Mean and standard deviation over the seeds; None where the encoding cannot read such rows."""
    found = [run["lengths"][str(length)] for run in runs if run["encoding"] == encoding]
    values = [point[measure] for point in found if point is not None]
    return (mean(values), stdev(values) if len(values) > 1 else 0.0) if values else None


def ranked(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The encodings, from the most accurate at the greatest length to the least; what cannot read it comes last."""

    def key(encoding: str) -> list[float]:
        points = (summary(runs, encoding, length, "accuracy") for length in reversed(LENGTHS))
        return [point[0] if point else -1.0 for point in points]

    return sorted({run["encoding"] for run in runs}, key=key, reverse=True)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each encoding, masked accuracy in per cent and loss in nats, mean ± standard deviation."""

    def cell(encoding: str, length: int, measure: str) -> str:
        point = summary(runs, encoding, length, measure)
        scale, digits = (100, 1) if measure == "accuracy" else (1, 2)
        return f"{point[0] * scale:.{digits}f} ± {point[1] * scale:.{digits}f}" if point else "-"

    columns = [(measure, length) for measure in ("accuracy", "loss") for length in LENGTHS]
    lines = [" | ".join(["| encoding", "seeds", *(f"{measure} {length}" for measure, length in columns)]) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for encoding in ranked(runs):
        seeds = sum(run["encoding"] == encoding for run in runs)
        cells = (cell(encoding, length, measure) for measure, length in columns)
        lines.append(f"| {encoding} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(runs: Sequence[dict[str, Any]], path: Path) -> bool:
    """One line for each encoding, one dot for each length, left accuracy, right loss; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = ranked(runs)
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(names)), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure, label in zip(panels, ("accuracy", "loss"), ("masked accuracy", "loss in nats"), strict=True):
        for length, colour in zip(LENGTHS, COLOURS, strict=True):
            points = [(summary(runs, name, length, measure), row) for row, name in enumerate(names)]
            known = [(*point, row) for point, row in points if point]
            x, error, y = zip(*known, strict=True) if known else ((), (), ())
            axes.errorbar(x, y, xerr=error, fmt="o", color=colour, capsize=2, markersize=5, label=f"rows of {length}")
        axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="y", linewidth=0.3)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(LENGTHS))
    figure.savefig(path)
    return True


def report(folder: Path) -> str:
    """Writes positions.md and positions.png beside positions.json; returns the table and what there is to say."""
    runs = json.loads((folder / "positions.json").read_text(encoding="utf-8"))["runs"]
    text = table(runs)
    (folder / "positions.md").write_text(text + "\n", encoding="utf-8")
    drawn = chart(runs, folder / "positions.png")
    last = f"chart in {folder / 'positions.png'}" if drawn else "no chart: pip install 'noria[viz]'"
    notes = "trained on rows of 64; accuracy in per cent, loss in nats; mean ± standard deviation over the seeds;\n"
    return f"\n{text}\n\n{notes}- where the encoding has no code for such rows; {last}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="positions_chart.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the --output of positions.py")
    options = parser.parse_args(arguments)
    try:
        print(report(options.folder))
    except (ValueError, OSError) as error:
        print(f"positions_chart.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
