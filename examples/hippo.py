"""What each HiPPO memory remembers of a signal: errors as a table, and a drawing where matplotlib is installed.

python examples/hippo.py --output noria-hippo

A signal of two units of time enters every memory, sample by sample; afterwards it is drawn again from the
coefficients alone. `whole` is the error over the whole past, `recent` over the last unit of time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from noria.cli import Parser
from noria.modeling.ops.hippo import MEASURES, HippoMemory, rmse

PAST = 2.0
COLOURS = {"legs": "#08519c", "legt": "#d7301f", "lagt": "#238b45", "fout": "#6a51a3", "fous": "#d95f0e"}


def signal(samples: int, seed: int) -> Tensor:
    """Eight waves of random phase, the faster the fainter, over PAST units of time, (samples) float64."""
    draw = torch.Generator().manual_seed(seed)
    t = PAST * (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    waves = torch.arange(1, 9, dtype=torch.float64)
    phases = 2 * torch.pi * torch.rand(8, generator=draw, dtype=torch.float64)
    return (torch.sin(torch.pi * waves[:, None] * t + phases[:, None]) / waves.sqrt()[:, None]).sum(0)


def remembered(measure: str, order: int, given: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Ages (p), newest first, as far as the memory reaches, and what it says of the signal there."""
    step = PAST / len(given)
    # Laguerre functions of order n end near an age of 4 n units of their own: theirs is so short that this is PAST.
    memory = HippoMemory(measure, order, PAST / (4 * order) if measure == "lagt" else 1.0)
    ages = step * (torch.arange(len(given), dtype=torch.float64) + 0.5)
    ages = ages[ages < memory.reach(PAST)]
    return ages, memory.reconstruct(memory.encode(given, step, method), ages, PAST)


def table(orders: Sequence[int], given: Tensor, method: str) -> str:
    """Markdown: a row for each measure, `recent` / `whole` for each order."""
    lines = ["| measure | " + " | ".join(f"N = {order}" for order in orders) + " |", "|---" * (len(orders) + 1) + "|"]
    newest = given.flip(0)
    for measure in MEASURES:
        cells = []
        for order in orders:
            ages, found = remembered(measure, order, given, method)
            recent = int((ages < 1).sum())
            whole = f"{rmse(found, newest):.4f}" if len(found) == len(given) else "-"
            cells.append(f"{rmse(found[:recent], newest[:recent]):.4f} / {whole}")
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chart(order: int, given: Tensor, method: str, path: Path) -> bool:
    """Draw the signal and what each memory says of it; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(COLOURS), 1, figsize=(8, 9), sharex=True, layout="constrained")
    times = PAST * (torch.arange(len(given)) + 0.5) / len(given)
    for axis, (measure, colour) in zip(axes, COLOURS.items(), strict=True):
        ages, found = remembered(measure, order, given, method)
        axis.plot(times, given, color="#bdbdbd", linewidth=2)
        axis.plot(PAST - ages, found, color=colour, linewidth=1)
        axis.set_title(f"{measure}, {order} coefficients", loc="left", fontsize=9)
    axes[-1].set_xlabel("time")
    figure.savefig(path)
    pyplot.close(figure)
    return True


def report(orders: Sequence[int], samples: int, method: str, seed: int, folder: Path) -> str:
    if samples < 2 or min(orders) < 1:
        raise ValueError(f"--samples must be at least 2 and --orders at least 1, got {samples} and {min(orders)}")
    given = signal(samples, seed)
    folder.mkdir(parents=True, exist_ok=True)
    text = table(orders, given, method)
    (folder / "hippo.md").write_text(text + "\n", encoding="utf-8")
    drawn = chart(max(orders), given, method, folder / "hippo.png")
    last = f"drawing in {folder / 'hippo.png'}" if drawn else "no drawing: pip install 'noria[viz]'"
    size = given.square().mean().sqrt().item()
    return f"{text}\n\nrmse, recent / whole; the signal's own size is {size:.3f}; {last}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="hippo.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--orders", nargs="+", type=int, default=[8, 16, 32, 64], metavar="N")
    parser.add_argument("--samples", type=int, default=1000, help="over the two units of time (1000)")
    parser.add_argument("--method", default="bilinear", choices=("bilinear", "zoh", "backward_euler"))
    parser.add_argument("--seed", type=int, default=0, help="of the signal's phases (0)")
    parser.add_argument("--output", type=Path, default=Path("noria-hippo"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        print(report(options.orders, options.samples, options.method, options.seed, options.output))
    except (ValueError, OSError) as error:
        print(f"hippo.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
