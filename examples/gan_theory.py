"""What GANs' objectives do: the best discriminator, gradients, divergences, and modes found on a ring of Gaussians.

python examples/gan_theory.py --output noria-gan-theory

All tables but the last are computed to rounding; the last trains small GANs, a few CPU minutes (--quick: hardly). It
wants SciPy for the exact distances of its last column: pip install 'noria[theory]'.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from theory import games, ring
from theory.divergences import best_discriminator, game
from theory.divergences import jensen_shannon as exact_js
from theory.report import Section, charts, write

from noria.cli import Parser

POINTS = 50
QUICK = ("non_saturating", "wgan_gp")
SHIFTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def best(seed: int) -> Section:
    """V(D*) against the divergence."""
    p, q = (side.numpy() for side in games.distributions(POINTS, seed))
    drawn = torch.rand(1000, POINTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    rows = []
    for name, other in (("p and q", q), ("nearer", (p + q) / 2), ("p and p", p)):
        value, divergence = game(p, other, best_discriminator(p, other)), exact_js(p, other)
        random = max(game(p, other, d) for d in drawn)
        rows.append([name, value, 2 * divergence - 2 * math.log(2), value - 2 * divergence + 2 * math.log(2), random])
    text = (
        f"{POINTS} points. D* = p / (p + q) makes the game V = E_p log D + E_q log(1 - D) worth 2 JS - 2 log 2, which"
        f" is least, {-2 * math.log(2):.4f}, where p = q."
    )
    header = ("distributions", "V(D*)", "2 JS - 2 log 2", "difference", "best V of 1,000 random D")
    return Section("The best discriminator", text, header, rows)


def approach(seed: int, steps: list[int]) -> Section:
    """A trained discriminator and the best one."""
    x, width = games.grid(8.0)
    p, q = games.normal(x, -1.0, 1.0), games.normal(x, 1.0, 1.0)
    exact = p / (p + q)
    rows, answers = [], []
    for number, model in zip(steps, games.discriminators(steps, seed), strict=True):
        with torch.no_grad():
            answers.append(model.double()(x[:, None]).squeeze(1).sigmoid())
        found = answers[-1]
        value = ((p * found.log() + q * (1 - found).log()).sum() * width).item()
        top = ((p * exact.log() + q * (1 - exact).log()).sum() * width).item()
        rows.append([number, (((p + q) / 2 * (found - exact).abs()).sum() * width).item(), value, top, top - value])

    def draw(axis: Any) -> None:
        for number, found in zip(steps, answers, strict=True):
            axis.plot(x, found, color=str(0.85 - 0.7 * number / max(steps)), label=f"{number} steps")
        axis.plot(x, exact, color="#d7301f", linestyle=":", label="D*")
        axis.set_xlim(-5, 5)
        axis.legend(fontsize=7)

    text = "Samples of N(-1, 1) are real, those of N(1, 1) generated: D* = sigmoid(-2 x)."
    header = ("steps", "E abs(D - D*)", "V(D)", "V(D*)", "difference")
    return Section("A trained discriminator approaches the best", text, header, rows, draw)


def bounds(seed: int) -> Section:
    """f-GAN's bound at the best critic and at a random one."""
    p, q = games.distributions(POINTS, seed)
    noise = 0.3 * torch.randn(POINTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = []
    for name in games.F_DIVERGENCES:
        objective = games.make_objective(name)
        logits, divergence = objective.optimal_logit(p / q), objective.divergence(p, q).item()
        value, below = (games.bound_on_points(name, p, q, given) for given in (logits, logits + noise))
        rows.append([name, divergence, value, value - divergence, below - divergence])
    text = (
        "E_p T(V) - E_q f*(T(V)) reaches the divergence at T(V) = f'(p / q), and is below it for every other critic."
    )
    header = ("divergence", "D_f", "bound at the best V", "difference", "minus D_f at a disturbed V")
    return Section("f-GAN's bounds", text, header, rows)


def descended(seed: int) -> Section:
    """Which divergence a generator descends when the critic is at its best."""
    p, q = games.distributions(POINTS, seed)
    rows = []
    for name, (written, _, _) in games.DESCENDED.items():
        loss, divergence = games.generator_gradients(name, p, q)
        still = games.generator_gradients(name, p, p.clone())[0].abs().max().item()
        rows.append([name, written, loss.norm().item(), (loss - divergence).abs().max().item(), still])
    text = (
        "The gradient of the generator's loss by the logits of q, the critic held at its best, is a divergence's; at"
        " q = p it is zero: the saturating and the non-saturating game have one fixed point."
    )
    header = ("objective", "descends", "norm of the gradient", "greatest difference", "gradient at q = p")
    return Section("What generators descend", text, header, rows)


def slopes() -> Section:
    """Saturating and non-saturating gradients in logits."""
    logits = torch.tensor([-16.0, -8, -4, -2, 0, 2, 4, 8, 16], dtype=torch.float64)
    names = ("minimax", "non_saturating", "wgan")
    columns = [logits.sigmoid().tolist(), *(games.logit_slopes(name, logits).tolist() for name in names)]
    rows = [list(row) for row in zip(logits.tolist(), *columns, strict=True)]

    def draw(axis: Any) -> None:
        x = torch.linspace(-8, 8, 201, dtype=torch.float64)
        for name, colour in zip(names, ("#d7301f", "#08519c", "#bdbdbd"), strict=True):
            axis.plot(x, games.logit_slopes(name, x), color=colour, label=name)
        axis.set_xlabel("logit of a generated sample")
        axis.legend(fontsize=7)

    text = (
        "By the logit of a generated sample, log(1 - D) has the gradient -D, which vanishes where the discriminator is"
        " sure, and -log D has -(1 - D), which is -1 there; WGAN's is -1 everywhere."
    )
    header = ("logit", "D", "minimax: -D", "non-saturating: -(1 - D)", "WGAN")
    return Section("Saturating and non-saturating gradients", text, header, rows, draw)


def saturation() -> Section:
    """The divergence of Gaussians that move apart, and its gradient."""
    x, width = games.grid(30.0, 12001)
    rows = []
    for shift in SHIFTS:
        moved = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
        p, q = games.normal(x, 0.0, 1.0) * width + 1e-300, games.normal(x, moved, 1.0) * width + 1e-300
        divergence = games.jensen_shannon(p, q)
        (slope,) = torch.autograd.grad(divergence, moved)
        value = (p * (p / (p + q)).log() + q * (q / (p + q)).log()).sum().item()
        slopes = (slope.item(), 1.0 if shift else "-")
        rows.append([shift, value, value / 2 + math.log(2), math.log(2) - divergence.item(), *slopes])

    def draw(axis: Any) -> None:
        axis.plot(SHIFTS, [row[2] for row in rows], "o-", color="#d7301f", label="JS = V / 2 + log 2")
        axis.plot(SHIFTS, [row[4] for row in rows], "o-", color="#fc8d59", label="its gradient")
        axis.axhline(math.log(2), color="#bdbdbd", label="log 2")
        axis.set_xlabel("shift")
        axis.legend(fontsize=7)

    text = "N(0, 1) and N(shift, 1). JS stays below log 2 and has no slope left far away; W = shift has slope 1."
    header = ("shift", "V(D*)", "V / 2 + log 2", "log 2 - JS", "gradient of JS", "gradient of W")
    return Section("The divergence saturates", text, header, rows, draw)


def directions() -> Section:
    """Forward and reverse Kullback-Leibler fits of one Gaussian to two."""
    x, width = games.grid(12.0)
    p = games.two_humps(x) * width + 1e-300
    fits = {
        "forward, KL(p, q)": games.kullback_leibler,
        "reverse, KL(q, p)": lambda p, q: games.kullback_leibler(q, p),
        "JS(p, q)": games.jensen_shannon,
    }
    rows, found = [], {}
    for name, divergence in fits.items():
        mean, deviation = found[name] = games.fitted(divergence)
        q = games.normal(x, mean, deviation) * width + 1e-300
        values = (games.kullback_leibler(p, q), games.kullback_leibler(q, p), games.jensen_shannon(p, q))
        rows.append([name, mean, deviation, *(value.item() for value in values)])

    def draw(axis: Any) -> None:
        axis.fill_between(x, games.two_humps(x), color="#d9d9d9")
        for (name, fit), style in zip(found.items(), ("-b", "-r", "--g"), strict=True):
            axis.plot(x, games.normal(x, *fit), style, label=name)
        axis.set_xlim(-6, 6)
        axis.legend(fontsize=7)

    text = (
        "One Gaussian q for p = ½ N(-2, ½) + ½ N(2, ½). Forward covers both with p's own mean 0 and deviation"
        f" {math.sqrt(4.25):.4f}; reverse takes one and pays log 2."
    )
    header = ("least", "mean", "deviation", "KL(p, q)", "KL(q, p)", "JS")
    return Section("Forward and reverse Kullback-Leibler", text, header, rows, draw)


def cloud(samples: torch.Tensor) -> Callable[[Any], None]:
    """How to draw samples over the ring."""

    def draw(axis: Any) -> None:
        axis.scatter(*ring.centres().T, s=60, color="#fdd0a2")
        axis.scatter(*samples.T, s=1, color="#08519c")
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])

    return draw


def modes(names: Sequence[str], steps: int, seeds: int, folder: Path) -> Section:
    """Modes found on the ring by each objective; the samples of the first seed are drawn into a file of their own."""
    rows, clouds = [], {}
    for name in names:
        models = [ring.trained(ring.RECIPES[name], steps, seed) for seed in range(seeds)]
        found = [ring.judged(model, seed) for seed, model in enumerate(models)]
        clouds[ring.RECIPES[name].label] = cloud(models[0].generate_images(500, seed=0))
        near, distance = (sum(getattr(f, part) for f in found) / seeds for part in ("near", "distance"))
        counts = " ".join(str(f.modes) for f in found)
        rows.append([ring.RECIPES[name].label, counts, f"{100 * near:.0f}", distance])
        print(f"{ring.RECIPES[name].label}: {counts}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    charts(clouds, folder / "gan-theory-ring.png", columns=5, side=2.6)
    draw_from = torch.Generator().manual_seed(0)
    floor = ring.assigned(ring.ring(ring.COMPARED, draw_from), ring.ring(ring.COMPARED, draw_from))

    def draw(axis: Any) -> None:
        places = range(len(rows))
        axis.barh(places, [sum(map(int, row[1].split())) / seeds for row in rows], color="#4292c6")
        axis.set_yticks(places, [row[0] for row in rows], fontsize=6)
        axis.set_xlim(0, ring.MODES)
        axis.invert_yaxis()
        axis.set_xlabel("modes found of 8, mean over seeds")

    text = (
        f"{steps:,} generator steps, batches of {ring.BATCH}, {seeds} seeds. Modes: found by each seed. Near: samples"
        f" within three deviations of a mode. W: exact, of {ring.COMPARED} samples and as many of the ring; two such"
        f" sets of the ring have {floor:.3f}."
    )
    return Section("Modes of a ring of eight Gaussians", text, ("objective", "modes", "near, %", "W"), rows, draw)


def sections(
    names: Sequence[str], steps: int, seeds: int, quick: bool, folder: Path
) -> Iterator[Callable[[], Section]]:
    yield lambda: best(0)
    yield lambda: approach(0, [0, 30, 100] if quick else [0, 30, 100, 300, 1000])
    yield lambda: bounds(0)
    yield lambda: descended(0)
    yield slopes
    yield saturation
    yield directions
    if names:
        yield lambda: modes(names, steps, seeds, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="gan_theory.py", description=(__doc__ or "").partition("\n")[0])
    known = ", ".join(ring.RECIPES)
    parser.add_argument("--objectives", nargs="*", metavar="NAME", help=f"that are tried on the ring (all): {known}")
    parser.add_argument("--steps", type=int, help="of a generator on the ring (1500)")
    parser.add_argument("--seeds", type=int, help="GANs for each objective (3)")
    parser.add_argument("--quick", action="store_true", help="two objectives, one seed, 50 steps unless given")
    parser.add_argument("--output", type=Path, default=Path("noria-gan-theory"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    names = options.objectives if options.objectives is not None else list(QUICK if options.quick else ring.RECIPES)
    steps = options.steps if options.steps is not None else 50 if options.quick else 1500
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    try:
        if unknown := [name for name in names if name not in ring.RECIPES]:
            raise ValueError(f"--objectives must be of {known}, got {' '.join(unknown)}")
        if steps < 1 or seeds < 1:
            raise ValueError(f"--steps and --seeds must be at least 1, got {steps} and {seeds}")
        done = []
        for make in sections(names, steps, seeds, options.quick, options.output):
            done.append(make())
            print(done[-1].markdown() + "\n", flush=True)
        print(write(done, options.output, "gan-theory"))
    except (ValueError, OSError, ImportError) as error:
        print(f"gan_theory.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
