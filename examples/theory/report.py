"""Tables as Markdown, charts where matplotlib is installed, and one file of each in a folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Section(NamedTuple):
    """A table with its title, what it shows, and how to draw it on one of matplotlib's axes."""

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    draw: Callable[[Any], None] | None = None

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *[[cell(value) for value in row] for row in self.rows]]
        return "\n".join([f"## {self.title}", "", self.text, "", *(f"| {' | '.join(line)} |" for line in lines)])


def cell(value: Any) -> str:
    """Numbers with four digits, and with powers of ten where they are small."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float) or value == 0:
        return "0" if value == 0 else str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def charts(drawings: Mapping[str, Callable[[Any], None]], path: Path, columns: int = 2, side: float = 5.5) -> bool:
    """A panel for each drawing, by its title; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(drawings) // columns)
    size = (side * columns, 0.62 * side * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.ravel()[len(drawings) :]:
        axis.remove()
    for axis, (title, draw) in zip(axes.ravel(), drawings.items(), strict=False):
        draw(axis)
        axis.set_title(title, loc="left", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def write(sections: Sequence[Section], folder: Path, name: str) -> str:
    """Write `name`.md and `name`.png into the folder; what is to be printed last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n\n".join(s.markdown() for s in sections) + "\n", encoding="utf-8")
    drawn = charts({s.title: s.draw for s in sections if s.draw}, folder / f"{name}.png")
    return f"charts in {folder / name}.png" if drawn else "no charts: pip install 'noria[theory]'"
