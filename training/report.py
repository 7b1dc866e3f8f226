"""What a quickstart run tells its user: the history as JSON, the chart, the closing page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .measure import Sample


@dataclass
class History:
    """The losses of one run, in nats per character: `curve` holds (training seconds, training loss) pairs."""

    architecture: str
    unigram: float
    before: float
    after: float | None = None
    steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def draw(history: History, path: Path) -> bool:
    """Draws the losses of the run as a PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    if history.curve:
        axes.plot(
            *zip(*history.curve, strict=True), color="tab:blue", linewidth=1, label="training batches, all tokens"
        )
    axes.axhline(history.unigram, color="gray", linestyle="--", label=f"unigram baseline {history.unigram:.2f}")
    points = [(0.0, history.before)] + ([(history.seconds, history.after)] if history.after is not None else [])
    axes.plot(*zip(*points, strict=True), "o", color="tab:red", label="held-out text")
    for x, y in points:
        axes.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(0, 8), ha="center", color="tab:red")
    axes.set(xlabel="training time in seconds", ylabel="nats per character", title=history.architecture)
    axes.margins(y=0.12)
    axes.legend()
    figure.savefig(path)
    return True


def losses(history: History) -> str:
    """The held-out losses beside the baseline, as a small table."""
    rows = [("unigram baseline", history.unigram), ("before training", history.before)]
    if history.after is not None:
        rows.append(("after training", history.after))
    lines = [f"  {name:<18}{value:7.3f}" for name, value in rows]
    if history.after is not None:
        lines.append(f"  {'below the baseline':<18}{history.unigram - history.after:7.3f}")
    return "\n".join(["held-out loss, nats per character", *lines])


def poems(samples: Sequence[Sample]) -> str:
    """The samples, each under the line that says which prompt and seed it came from."""
    return "\n\n".join(f"-- {s.prompt.strip()}, seed {s.seed}\n{s.text.strip()}" for s in samples)


def sizes(short: int, long: int) -> str:
    """The cache's bytes at 16 and at 4,096 tokens, side by side."""
    verdict = "equal" if short == long else f"{long / short:.0f} times as much"
    return f"cache     {short:8,} bytes at 16 tokens, {long:,} bytes at 4,096 tokens: {verdict}"


def loading(folder: str) -> str:
    """The three lines of Python that load what was saved."""
    return (
        "    import noria, transformers\n"
        f"    model = transformers.AutoModelForCausalLM.from_pretrained({folder!r})\n"
        f"    tokenizer = transformers.AutoTokenizer.from_pretrained({folder!r})"
    )
