"""examples/wasserstein.py and examples/gan_theory.py: the figures of the theory, to the digit where it gives any."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="exact transport wants the theory extra")
FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    """The scripts import the folder theory/ as Python has it that runs them."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in [name for name in sys.modules if name.partition(".")[0] == "theory"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def transport(on_the_path):
    return load("theory/transport")


@pytest.fixture(scope="module")
def wasserstein(on_the_path):
    return load("wasserstein")


@pytest.fixture(scope="module")
def gan_theory(on_the_path):
    return load("gan_theory")


def load(name: str):
    """A script or a part of one as a module; parts under the name by which the scripts import them."""
    if "/" in name:
        return importlib.import_module(name.replace("/", "."))
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def columns(section) -> dict[str, list]:
    return dict(zip(section.header, map(list, zip(*section.rows, strict=True)), strict=True))


def test_one_function_suffices_for_a_metric_only(wasserstein):
    """40 points: 0.1267 by plan and by two potentials, 0.0801 by one, for the square of the distance."""
    found = {row[0]: row[1:] for row in wasserstein.costs(1).rows}
    metric, primal, both, one, shortest, formula = found["(x - y)^2"]
    assert not metric
    assert f"{primal:.4f} {both:.4f} {one:.4f}" == "0.1267 0.1267 0.0801"
    assert formula == pytest.approx(primal, abs=1e-10)
    for metric, primal, both, one, shortest, formula in found.values():
        assert both == pytest.approx(primal, abs=1e-10)
        assert one == pytest.approx(shortest, abs=1e-10)
        assert (abs(one - primal) < 1e-10) if metric else (one < primal - 0.01)
        assert formula == "-" or formula == pytest.approx(primal, abs=1e-10)
    assert [name for name, row in found.items() if row[0]] == ["abs(x - y)", "sqrt abs(x - y)", "Euclid in 2-D"]


@pytest.mark.parametrize("seed", range(3))
def test_the_formula_of_the_line_agrees_with_scipy(transport, seed):
    from scipy.stats import wasserstein_distance

    draw = np.random.default_rng(seed)
    x, y, p, q = draw.normal(size=9), draw.normal(size=13), draw.dirichlet(np.ones(9)), draw.dirichlet(np.ones(13))
    cost = np.abs(x[:, None] - y)
    expected = wasserstein_distance(x, y, p, q)
    assert transport.by_quantiles(x, y, p, q) == pytest.approx(expected, abs=1e-12)
    assert transport.distance(cost, p, q) == pytest.approx(expected, abs=1e-10)
    assert transport.dual(cost, p, q).value == pytest.approx(expected, abs=1e-10)
    squares = transport.by_quantiles(x, y, p, q, 2)
    assert transport.distance(cost**2, p, q) == pytest.approx(squares, abs=1e-10)


def test_plans_have_their_marginals_and_potentials_their_limits(transport, wasserstein):
    x, p, q = wasserstein.line(5)
    cost = wasserstein.between(x, 2)
    plan, dual = transport.primal(cost, p, q), transport.dual(cost, p, q)
    assert np.abs(plan.sum(1) - p).max() < 1e-12
    assert np.abs(plan.sum(0) - q).max() < 1e-12
    assert plan.min() >= 0
    slack = cost - dual.f[:, None] - dual.g
    assert slack.min() > -1e-9
    assert (plan * slack).sum() == pytest.approx(0, abs=1e-9), "a plan uses only ways whose limit is reached"


def test_weak_and_strong_duality(wasserstein):
    found = columns(wasserstein.duality(1))
    gaps = found["minus primal"]
    assert gaps == sorted(gaps, key=lambda gap: round(gap, 12))
    assert gaps[0] < -1e-3
    assert gaps[-1] > 1e-3
    for gap, slack in zip(gaps[1:4], (0.1, 0.01, 0.001), strict=True):
        assert -slack < gap <= 1e-10
    assert abs(gaps[4]) < 1e-10


def test_farkas_either_solves_or_certifies(transport):
    a = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    x, y = transport.farkas(a, np.array([1.0, 2.0]))
    assert y is None
    assert np.allclose(a @ x, [1, 2])
    assert x.min() >= 0
    x, y = transport.farkas(a, np.array([1.0, -0.5]))
    assert x is None
    assert (a.T @ y).max() <= 1e-12
    assert y @ [1.0, -0.5] > 0.1
    with pytest.raises(ValueError, match=r"so 0\.5 is not the cheapest"):
        transport.dual_from_farkas(np.array([[0.0, 1], [1, 0]]), np.full(2, 0.5), np.full(2, 0.5), 0.5, 0.1)


def test_c_transforms_stand_still_and_are_opposite_for_a_metric(wasserstein):
    metric, square = wasserstein.transforms(1).rows
    for _, once, twice, optimum, again, _ in (metric, square):
        assert once <= twice <= optimum
        assert again < 1e-12
    assert metric[-1] < 1e-12
    assert square[-1] > 0.1


def test_sinkhorn_bounds_the_program_from_both_sides(transport, wasserstein):
    x, p, q = wasserstein.line(1)
    cost = wasserstein.between(x, 2)
    exact, widths = transport.distance(cost, p, q), []
    for entropy in (0.3, 0.1, 0.03):
        found = transport.sinkhorn(cost, p, q, entropy)
        assert found.lower - 1e-12 <= exact <= found.upper + 1e-12
        assert np.abs(found.plan.sum(0) - q).max() < 1e-12
        assert found.upper - exact <= entropy * math.log(found.plan.size)
        widths.append(found.upper - found.lower)
    assert widths == sorted(widths, reverse=True)


def test_parallel_lines(wasserstein):
    """W is the shift, JS log 2 and KL infinite for all of them; critics tell how far, discriminators only that."""
    found = columns(wasserstein.parallel_lines((0.0, 0.25, 2.0), 200, number=32))
    assert found["W"] == pytest.approx([0, 0.25, 2.0], abs=1e-10)
    assert found["JS"] == pytest.approx([0, math.log(2), math.log(2)], abs=1e-12)
    assert found["KL"] == [0, math.inf, math.inf]
    assert found["critic"] == pytest.approx(found["W (1 + W / 2 lambda)"], rel=0.02, abs=1e-6)
    assert found["critic / slope"][1:] == pytest.approx(found["W"][1:], rel=0.03)
    assert all(low <= high + 1e-5 for low, high in zip(found["critic / slope"], found["W"], strict=True))
    assert found["JS of a discriminator"] == pytest.approx(found["JS"], abs=0.01)


def test_critics_against_the_program(wasserstein):
    found = {row[0]: row[1:] for row in wasserstein.toy_critics(32, 250, 1).rows}
    shares = {name: float(row[-1]) for name, row in found.items()}
    assert max(shares.values()) <= 100.1, "value / slope is feasible for the program"
    assert min(shares["gradient penalty"], shares["one-sided penalty"]) > 95
    assert found["weights clipped to 0.01"][1] < 0.1
    for name in ("gradient penalty", "one-sided penalty"):
        assert 1 < found[name][1] < 1.2, "a soft limit"
    for name in ("spectral norm, ReLU", "spectral norm, sorted pairs"):
        _, slope, bound = found[name][:3]
        assert slope <= bound <= 1.001, "a guarantee"
    assert shares["spectral norm, sorted pairs"] > shares["spectral norm, ReLU"] + 5
    assert shares["spectral norm, sorted pairs"] > 85


def test_the_best_discriminator(gan_theory):
    found = columns(gan_theory.best(0))
    assert np.abs(found["difference"]).max() <= 5e-16
    assert found["V(D*)"][-1] == pytest.approx(-2 * math.log(2), abs=1e-15)
    assert all(random < best for random, best in zip(found["best V of 1,000 random D"], found["V(D*)"], strict=True))


def test_a_trained_discriminator_approaches_the_best(gan_theory):
    found = columns(gan_theory.approach(0, [0, 30, 300]))
    errors = found["E abs(D - D*)"]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert all(gap > 0 for gap in found["difference"])
    assert found["difference"][-1] < 3e-3
    assert found["V(D*)"][0] == pytest.approx(2 * 0.336831 - 2 * math.log(2), abs=1e-5)


def test_f_divergences_reach_their_bounds(gan_theory):
    found = columns(gan_theory.bounds(0))
    assert np.abs(found["difference"]).max() < 1e-12
    assert max(found["minus D_f at a disturbed V"]) < -1e-3


def test_generators_descend_the_divergences_that_the_theory_names(gan_theory):
    found = columns(gan_theory.descended(0))
    assert max(found["greatest difference"]) < 1e-12
    assert max(found["gradient at q = p"]) < 1e-12
    assert min(found["norm of the gradient"]) > 0.01


def test_saturating_and_non_saturating_gradients(gan_theory):
    logits, d, saturating, other, wgan = zip(*gan_theory.slopes().rows, strict=True)
    assert saturating == pytest.approx([-value for value in d], abs=1e-15)
    assert other == pytest.approx([value - 1 for value in d], abs=1e-15)
    assert set(wgan) == {-1.0}
    assert abs(saturating[0]) < 1e-6
    assert other[0] == pytest.approx(-1, abs=1e-6)
    assert (logits[4], saturating[4], other[4]) == (0, -0.5, -0.5)


def test_the_divergence_saturates(gan_theory):
    found = columns(gan_theory.saturation())
    values, slopes = found["V / 2 + log 2"], found["gradient of JS"]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[-1] == pytest.approx(math.log(2), abs=1e-12)
    assert slopes[0] == pytest.approx(0, abs=1e-12)
    assert 0 < slopes[-1] < 1e-12


def test_forward_covers_and_reverse_seeks(gan_theory):
    forward, reverse, _ = gan_theory.directions().rows
    assert forward[1:3] == pytest.approx([0, math.sqrt(4.25)], abs=1e-3)
    assert [abs(reverse[1]), reverse[2], reverse[4]] == pytest.approx([2, 0.5, math.log(2)], abs=2e-3)
    assert forward[3] < reverse[3]


def test_modes_are_counted(gan_theory):
    """Samples of the ring itself, of three of its modes, and of its middle."""
    ring, draw = gan_theory.ring, torch.Generator().manual_seed(0)

    class Fixed:
        def __init__(self, samples):
            self.samples = samples

        def generate_images(self, number, seed):
            return self.samples[torch.arange(number) % len(self.samples)]

    all_of_them = ring.ring(2000, draw)
    found = ring.judged(Fixed(all_of_them), 0)
    assert found.modes == 8
    assert found.near == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    near = torch.cdist(all_of_them, ring.centres()).argmin(1) < 3
    found = ring.judged(Fixed(all_of_them[near]), 0)
    assert found.modes == 3
    assert found.distance > 1
    found = ring.judged(Fixed(torch.zeros(1, 2)), 0)
    assert (found.modes, found.near) == (0, 0)
    assert found.distance == pytest.approx(ring.RADIUS, abs=0.01)


def test_every_recipe_trains(gan_theory):
    ring = gan_theory.ring
    for recipe in ring.RECIPES.values():
        model = ring.trained(recipe, 2, seed=0)
        assert model.generate_images(4, seed=0).isfinite().all(), recipe.label


def test_a_generator_comes_nearer_to_the_ring(gan_theory):
    ring = gan_theory.ring
    start, end = (ring.judged(ring.trained(ring.RECIPES["wgan_gp"], steps, seed=0), 0) for steps in (1, 150))
    assert end.distance < 0.8 < 1 < start.distance


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [("wasserstein", [], "wasserstein"), ("gan_theory", ["--objectives", "hinge", "--steps", "2"], "gan-theory")],
)
def test_a_script_writes_its_tables_and_its_charts(name, arguments, written, request, tmp_path, capsys):
    module = request.getfixturevalue(name)
    assert module.main([*arguments, "--quick", "--output", str(tmp_path)]) == 0
    text = (tmp_path / f"{written}.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert text.strip() in printed.replace("\n\n\n", "\n\n")
    assert len(re.findall("^## ", text, re.M)) == {"wasserstein": 6, "gan_theory": 8}[name]
    charts = {"wasserstein": ["wasserstein.png"], "gan_theory": ["gan-theory-ring.png", "gan-theory.png"]}[name]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == charts
    assert all((tmp_path / chart).stat().st_size > 2_000 for chart in charts)


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("wasserstein", ["--seed", "-1"], "--seed must be at least 0, got -1"),
        ("gan_theory", ["--objectives", "mine"], "--objectives must be of minimax, "),
        ("gan_theory", ["--steps", "0"], "--steps and --seeds must be at least 1, got 0 and 3"),
    ],
)
def test_a_script_complains_in_one_line(name, arguments, complaint, request, tmp_path, capsys):
    module = request.getfixturevalue(name)
    assert module.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{name}.py: error: {complaint}")
    assert error.count("\n") == 1


def test_weights_that_do_not_fit_are_named(transport):
    with pytest.raises(ValueError, match=r"a cost of 2 x 3 goes with these weights, got \(2, 2\)"):
        transport.primal(np.zeros((2, 2)), np.full(2, 0.5), np.full(3, 1 / 3))
    with pytest.raises(ValueError, match=r"one sum, got sums of 1 and 1\.1"):
        transport.dual(np.zeros((2, 2)), np.full(2, 0.5), np.full(2, 0.55))
    with pytest.raises(ValueError, match=r"entropy and weights must be greater than 0, got 0 and 0\.5"):
        transport.sinkhorn(np.zeros((2, 2)), np.full(2, 0.5), np.full(2, 0.5), 0)


def test_a_missing_scipy_is_named_with_its_extra(wasserstein, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert wasserstein.main(["--output", str(tmp_path)]) == 2
    assert "wasserstein.py: error: exact transport wants SciPy: pip install 'noria[theory]'" in capsys.readouterr().err
