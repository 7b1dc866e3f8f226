"""Wasserstein distances, their duals and WGAN's critics: every claim of the theory as a table and a chart.

python examples/wasserstein.py --output noria-wasserstein

Distances are exact: linear programs solved by SciPy's HiGHS (pip install 'noria[theory]'). Errors are differences from
the program's value. --quick trains the critics for a moment only; the exact tables are the same.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from theory import critics, transport
from theory.divergences import jensen_shannon, kullback_leibler
from theory.report import Section, write

from noria.cli import Parser

POINTS = 40
SHIFTS = (0.0, 0.05, 0.25, 0.5, 1.0, 2.0, 4.0)
ENTROPIES = (1.0, 0.3, 0.1, 0.03, 0.01)


def line(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """POINTS points of a standard normal in order, and two random distributions over them."""
    draw = np.random.default_rng(seed)
    x = np.sort(draw.standard_normal(POINTS))
    return x, draw.dirichlet(np.ones(POINTS)), draw.dirichlet(np.ones(POINTS))


def between(x: np.ndarray, power: float = 1.0) -> np.ndarray:
    """|x - y|^power among points (n) of a line or (n, d) of a space."""
    rows = x.reshape(len(x), -1)
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1) ** power


def costs(seed: int) -> Section:
    """Where g = -f is safe, and where it is not."""
    x, p, q = line(seed)
    plane = np.random.default_rng(seed).standard_normal((POINTS, 2))
    given = [("abs(x - y)", x, 1.0), ("sqrt abs(x - y)", x, 0.5), ("(x - y)^2", x, 2.0)]
    given += [("Euclid in 2-D", plane, 1.0), ("its square", plane, 2.0)]
    rows = []
    for name, points, power in given:
        cost = between(points, power)
        formula = transport.by_quantiles(x, x, p, q, power) if points is x and power >= 1 else "-"
        values = [transport.distance(cost, p, q), transport.dual(cost, p, q).value]
        values += [transport.one_function(cost, p, q).value, transport.distance(transport.closure(cost), p, q)]
        rows.append([name, transport.is_metric(cost), *values, formula])

    def draw(axis: Any) -> None:
        places = np.arange(len(rows))
        for number, (label, colour) in enumerate([("primal", "#bdbdbd"), ("f, g", "#4292c6"), ("f, -f", "#d7301f")]):
            heights = [row[2 + number] for row in rows]
            axis.bar(places + 0.27 * (number - 1), heights, 0.25, label=label, color=colour)
        axis.set_xticks(places, [row[0] for row in rows], fontsize=7)
        axis.legend(fontsize=7)

    header = ("cost", "metric", "primal", "dual f, g", "dual f, -f", "primal of shortest paths", "1-D formula")
    text = (
        f"{POINTS} points. With one function, g = -f, the dual reaches the primal where the cost is a metric, and"
        " falls short elsewhere: its value is the distance by the cost's own shortest paths, which may be cheaper."
    )
    return Section("One function suffices for a metric only", text, header, rows, draw)


def duality(seed: int) -> Section:
    """Weak duality on random points, strong duality by Farkas' lemma."""
    x, p, q = line(seed)
    cost, draw = between(x, 2), np.random.default_rng(seed)
    value = transport.distance(cost, p, q)
    below = []
    for f in draw.standard_normal((1000, POINTS)) * draw.exponential(0.3, (1000, 1)):
        below.append(p @ f + q @ transport.c_transform(f, cost))
    plans = (transport.rounded(np.exp(draw.standard_normal(cost.shape) - cost), p, q) for _ in range(1000))
    above = min(float((plan * cost).sum()) for plan in plans)
    rows: list[list[Any]] = [["best of 1,000 random f with g = f^c", float(max(below)), float(max(below)) - value]]
    for slack in (0.1, 0.01, 0.001):
        found = transport.dual_from_farkas(cost, p, q, value, slack).value
        rows.append([f"Farkas' witness that no plan costs {slack} less", found, found - value])
    found = transport.dual(cost, p, q).value
    rows += [["dual program", found, found - value], ["primal program", value, 0.0]]
    rows.append(["cheapest of 1,000 random plans", above, above - value])
    mass = transport.marginals(POINTS, POINTS)
    more = transport.farkas(mass, np.concatenate([1.1 * p, q]))[1]
    assert more is not None
    text = (
        "Every dual value is below every plan's cost, and nothing is between the two programs. Masses of 1.1 and 1"
        f" have no plan; the witness y with A'y <= 0 has b.y = {1.1 * p @ more[:POINTS] + q @ more[POINTS:]:.4f} > 0."
    )
    return Section("Weak and strong duality, cost (x - y)^2", text, ("bound", "value", "minus primal"), rows)


def transforms(seed: int) -> Section:
    """c-transforms never lower a dual value, and stand still from the second on."""
    x, p, q = line(seed)
    rows: list[list[Any]] = []
    potentials = {}
    for name, power in (("abs(x - y)", 1.0), ("(x - y)^2", 2.0)):
        cost = between(x, power)
        best = transport.dual(cost, p, q)
        start = np.random.default_rng(seed).standard_normal(POINTS) * 0.1
        once = transport.c_transform(start, cost)
        twice = transport.c_transform(once, cost.T)
        again = float(np.abs(transport.c_transform(twice, cost) - once).max())
        closed = transport.c_transform(transport.c_transform(best.f, cost), cost.T)
        opposite = float(np.abs(transport.c_transform(closed, cost) + closed).max())
        values = [float(p @ start + q @ once), float(p @ twice + q @ once), best.value]
        rows.append([name, *values, again, opposite])
        potentials[power] = (closed, transport.c_transform(closed, cost))

    def draw(axis: Any) -> None:
        f, g = potentials[2.0]
        axis.plot(x, f, color="#08519c", label="f")
        axis.plot(x, g, color="#d7301f", label="g = f^c")
        axis.plot(x, -f, color="#08519c", linestyle=":", label="-f")
        axis.legend(fontsize=7)

    header = ("cost", "f, f^c", "f^cc, f^c", "optimum", "max abs(f^ccc - f^c)", "max abs(f^c + f) at the optimum")
    text = (
        "From a random f. f^c is the best partner of f, f^cc at least f, f^ccc = f^c. For a metric the closed optimum"
        " has f^c = -f, as Kantorovich's and Rubinstein's theorem says; for the square, in the chart, it has not."
    )
    return Section("c-transforms", text, header, rows, draw)


def entropic(seed: int, entropies: Sequence[float]) -> Section:
    """Sinkhorn's iteration against the program."""
    x, p, q = line(seed)
    cost = between(x, 2)
    value = transport.distance(cost, p, q)
    rows = []
    for entropy in entropies:
        found = transport.sinkhorn(cost, p, q, entropy)
        rows.append([entropy, found.lower, value, found.upper, found.upper - found.lower, found.iterations])

    def draw(axis: Any) -> None:
        axis.fill_between(entropies, [row[1] for row in rows], [row[3] for row in rows], color="#9ecae1")
        axis.axhline(value, color="#08519c", label="program")
        axis.set(xscale="log", xlabel="entropy's weight", ylim=(0, None))
        axis.legend(fontsize=7)

    text = "The plan, rounded to its marginals, bounds the distance from above; f and f^c bound it from below."
    header = ("entropy's weight", "lower", "program", "upper", "width", "iterations")
    return Section("Sinkhorn's bounds, cost (x - y)^2", text, header, rows, draw)


def parallel_lines(shifts: Sequence[float], steps: int, number: int = 64) -> Section:
    """p = (0, z), q = (shift, z): only the transport distance sees how far apart they are."""
    z = (torch.arange(number) + 0.5) / number
    weights = np.full(number, 1 / number)
    rows = []
    for shift in shifts:
        real, fake = torch.stack([0 * z, z], dim=1), torch.stack([0 * z + shift, z], dim=1)
        exact = transport.distance(critics.euclidean(real, fake).numpy(), weights, weights)
        # Over the points of both lines together, which are one line where there is no shift.
        p, q = (weights, weights) if shift == 0 else (np.r_[weights, 0 * weights], np.r_[0 * weights, weights])
        critic = critics.estimate(critics.trained(critics.METHODS["gradient"], real, fake, steps), real, fake)
        judge = critics.divergence_found(critics.trained(critics.DISCRIMINATOR, real, fake, steps), real, fake)
        exactly = [exact, jensen_shannon(p, q), kullback_leibler(p, q)]
        rows.append([shift, *exactly, critic.value, exact * (1 + exact / 20), critic.certified, judge])

    def draw(axis: Any) -> None:
        columns = [(1, "W", "#08519c", "-"), (4, "WGAN-GP's critic", "#4292c6", "o"), (2, "JS", "#d7301f", "-")]
        for column, label, colour, style in [*columns, (7, "JS of a discriminator", "#fc8d59", "o")]:
            axis.plot(shifts, [row[column] for row in rows], style, color=colour, label=label)
        axis.set_xlabel("shift")
        axis.legend(fontsize=7)

    header = ("shift", "W", "JS", "KL", "critic", "W (1 + W / 2 lambda)", "critic / slope", "JS of a discriminator")
    text = (
        f"W = abs(shift), JS = log 2 = {math.log(2):.4f} and KL = inf for every shift but 0. A critic with gradient"
        " penalty (lambda = 10) follows W; its slope settles at 1 + W / (2 lambda), where the penalty's pull equals"
        " W's, so its value is W (1 + W / (2 lambda)). A discriminator tells the lines apart and no more."
    )
    return Section("Parallel lines", text, header, rows, draw)


def toy_critics(number: int, steps: int, seed: int) -> Section:
    """What each method's critic says, beside the program's value."""
    real, fake = critics.ring_and_cloud(number, seed)
    weights = np.full(number, 1 / number)
    exact = transport.distance(critics.euclidean(real, fake).numpy(), weights, weights)
    rows = []
    for method in critics.METHODS.values():
        found = critics.estimate(critics.trained(method, real, fake, steps, seed), real, fake)
        shares = (f"{100 * value / exact:.1f}" for value in (found.value, found.certified))
        rows.append([method.label, found.value, found.slope, found.bound, found.certified, *shares])

    def draw(axis: Any) -> None:
        places = np.arange(len(rows))
        axis.barh(places - 0.2, [row[1] / exact for row in rows], 0.35, label="value / W", color="#9ecae1")
        axis.barh(places + 0.2, [row[4] / exact for row in rows], 0.35, label="value / slope / W", color="#08519c")
        axis.axvline(1, color="#d7301f")
        axis.set_yticks(places, [row[0] for row in rows], fontsize=7)
        axis.set_xlim(0, 1.7)
        axis.invert_yaxis()
        axis.legend(fontsize=7)

    header = ("critic", "value", "slope", "product of norms", "value / slope", "value, % of W", "value / slope, %")
    text = (
        f"{number} points of a ring of eight Gaussians, {number} of one in its middle; W = {exact:.4f} by the program."
        " The slope is the greatest between two points. Clipping leaves it where it likes, penalties a little above 1,"
        " and spectral norm below 1, since the layers' norms multiply to 1; value / slope is below W for all."
    )
    return Section("Critics of WGAN", text, header, rows, draw)


def sections(seed: int, quick: bool) -> Iterator[Callable[[], Section]]:
    yield lambda: costs(seed)
    yield lambda: duality(seed)
    yield lambda: transforms(seed)
    yield lambda: entropic(seed, ENTROPIES[: 3 if quick else None])
    yield lambda: parallel_lines(SHIFTS[:: 3 if quick else 1], 40 if quick else 300)
    yield lambda: toy_critics(32 if quick else 64, 40 if quick else 1500, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="wasserstein.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of points, weights and critics (1)")
    parser.add_argument("--quick", action="store_true", help="hardly train the critics")
    parser.add_argument("--output", type=Path, default=Path("noria-wasserstein"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        if options.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {options.seed}")
        done = []
        for make in sections(options.seed, options.quick):
            done.append(make())
            print(done[-1].markdown() + "\n", flush=True)
        print(write(done, options.output, "wasserstein"))
    except (ValueError, OSError, ImportError) as error:
        print(f"wasserstein.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
