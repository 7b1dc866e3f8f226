"""HiPPO's mathematics: matrices against quadrature, orders of discretisations, what each memory remembers."""

import importlib.util
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from laws import same

from noria.modeling.ops.discretisation import discretise, discretise_scaled
from noria.modeling.ops.gated_memory import CellWeights, gated_memory
from noria.modeling.ops.hippo import MEASURES, HippoMemory, rmse
from noria.modeling.ops.hippo_measures import LEGENDRE_SCALINGS, fous, fout, lagt, legs, legt
from noria.modeling.ops.hippo_projection import projector
from noria.modeling.ops.legs_operators import legs_bilinear_step, legs_matvec, legs_solve
from noria.modeling.ops.orthogonal import (
    fourier,
    laguerre,
    laguerre_nodes,
    legendre,
    legendre_nodes,
    orthonormal_legendre,
)

LENGTH = 2000
AGES = LENGTH - 0.5 - torch.arange(LENGTH, dtype=torch.float64)


def chirp(length: int = LENGTH) -> torch.Tensor:
    """A tone that rises from 0.3 to 21 periods per unit of time, over one unit."""
    t = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.sin(0.12 * math.pi * (torch.exp(4.4 * t) - 1))


def scaled_legendre(scale, s: torch.Tensor) -> torch.Tensor:
    n = torch.arange(7, dtype=s.dtype)
    return scale(n)[:, None] * legendre(s, 7)


FACTORS = {
    "orthonormal": lambda n: ((2 * n + 1) / 2).sqrt(),
    "paper": lambda n: (2 * n + 1).sqrt() / 2,
    "monomial": lambda n: (2 * n + 1) / 2,
}


@pytest.mark.parametrize("scaling", LEGENDRE_SCALINGS)
def test_legendre_matrices_follow_from_their_basis(scaling):
    nodes, weights = legendre_nodes(20)
    basis = partial(scaled_legendre, FACTORS[scaling])
    sliding = projector(basis, lambda s, time: time + 0.75 * (s - 1), nodes, weights, now=1.0, far=-1.0)
    growing = projector(basis, lambda s, time: (s + 1) * time / 2, nodes, weights, now=1.0, far=-1.0, time=3.0)
    for found, expected in zip(sliding, legt(7, 1.5, scaling), strict=True):
        same(found, expected)
    for found, expected in zip(growing, legs(7, scaling), strict=True):
        same(3 * found, expected)


@pytest.mark.parametrize("corrected", [True, False])
def test_fourier_matrices_follow_from_their_basis(corrected):
    nodes, weights = legendre_nodes(60, 0, 1)
    ends = {"now": 1.0, "far": 0.0, "periodic": corrected}
    found = projector(partial(fourier, order=9), lambda s, time: time + 1.5 * (s - 1), nodes, weights, **ends)
    for part, expected in zip(found, fout(9, 1.5, corrected, real=False), strict=True):
        same(part, expected)
    basis, ends = partial(fourier, order=9, real=True), ends | {"now": 0.0, "far": 1.0}
    found = projector(basis, lambda s, time: time - 1.5 * s, nodes, weights, **ends)
    for part, expected in zip(found, fout(9, 1.5, corrected), strict=True):
        same(part, expected)


def test_fourier_of_the_whole_past_follows_from_its_basis():
    nodes, weights = legendre_nodes(60, 0, 1)
    found = projector(partial(fourier, order=9), lambda s, time: time * s, nodes, weights, now=1.0, far=0.0)
    for part, expected in zip(found, fous(9), strict=True):
        same(part, expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.0, 0.3), (1.0, 0.0), (2.0, -0.5)])
def test_laguerre_matrices_follow_from_their_basis(alpha, beta):
    nodes, weights = laguerre_nodes(40)
    basis = partial(laguerre, order=7, alpha=alpha, fade=(1 - beta) / 2)

    def measure(s: torch.Tensor) -> torch.Tensor:
        return s**alpha * torch.exp(-beta * s)

    if alpha == 0:
        A, B = projector(basis, lambda s, time: time - s, nodes, weights, now=0.0, measure=measure)
        same(A, lagt(7, alpha, beta)[0], 1e-9)
        same(B, lagt(7, alpha, beta)[1])
    # g_n' = sum_k A_nk g_k and g_n(0) = B_n, whatever the measure
    g = partial(laguerre, order=7, alpha=alpha, fade=(1 + beta) / 2)
    slope = torch.func.jvp(g, (nodes[:20],), (torch.ones(20, dtype=torch.float64),))[1]
    same(slope, lagt(7, alpha, beta)[0] @ g(nodes[:20]))
    same(g(nodes.new_zeros(1))[:, 0], lagt(7, alpha, beta)[1])


def test_lagt_is_the_lower_triangle():
    A, B = lagt(5)
    same(A, 0.5 * torch.eye(5, dtype=torch.float64) - torch.ones(5, 5, dtype=torch.float64).tril())
    same(B, torch.ones(5, dtype=torch.float64))


def test_any_map_of_time_makes_a_memory():
    """Over t = T sqrt(s) coefficients turn twice as fast as over t = T s."""
    nodes, weights = legendre_nodes(30, 0, 1)
    basis, ends = lambda s: orthonormal_legendre(2 * s - 1, 6), {"now": 1.0, "far": 0.0}
    uneven = projector(basis, lambda s, time: time * s.sqrt(), nodes, weights, now=1.0)
    even = projector(basis, lambda s, time: time * s, nodes, weights, **ends)
    for found, expected in zip(uneven, even, strict=True):
        same(found, 2 * expected)


def test_the_legendre_memory_unit_is_legt_with_alternating_signs():
    n = torch.arange(8, dtype=torch.float64)
    below = torch.where(n[:, None] < n, -1.0, (-1.0) ** (n[:, None] - n + 1))
    A, B = (2 * n + 1)[:, None] * below, (2 * n + 1) * (-1.0) ** n
    mine, into = legt(8, 1.0, "monomial")
    flip = (-1.0) ** n
    same(flip[:, None] * mine * flip, A)
    same(flip * into, B)


def test_real_fourier_is_the_complex_one_and_even_orders_have_an_idle_coordinate():
    odd, even = fout(7, 3.0), fout(8, 3.0)
    kept = torch.tensor([0, *range(2, 8)])
    same(even[0][kept][:, kept], odd[0])
    assert even[0][1].abs().max() == 0
    assert even[1][1] == 0
    found = torch.linalg.eigvals(odd[0]).imag.sort()[0]
    same(found, torch.linalg.eigvals(fout(7, 3.0, real=False)[0]).imag.sort()[0], 1e-8)


def test_legs_has_the_eigenvalues_minus_one_to_minus_n():
    same(torch.linalg.eigvals(legs(9)[0]).real.sort(descending=True)[0], -torch.arange(1, 10).double(), 1e-8)


@pytest.mark.parametrize("order", [1, 2, 64])
def test_legs_multiplies_and_solves_in_linear_time(order):
    torch.manual_seed(0)
    A, v = legs(order)[0], torch.randn(3, 2, order, dtype=torch.float64, requires_grad=True)
    same(legs_matvec(v), v @ A.T, 1e-12)
    scale = torch.rand(3, 2, dtype=torch.float64)
    matrix = torch.eye(order, dtype=torch.float64) - scale[..., None, None] * A
    expected = torch.linalg.solve(matrix, v)
    same(legs_solve(v, scale), expected, 1e-12)
    same(torch.autograd.grad(legs_solve(v, scale).sum(), v)[0], torch.autograd.grad(expected.sum(), v)[0], 1e-12)


def test_a_step_in_linear_time_is_the_bilinear_one():
    memory, signal = HippoMemory("legs", 16), chirp(100)
    c = torch.zeros(16, dtype=torch.float64)
    for k, u in enumerate(signal, 1):
        c = legs_bilinear_step(c, u, k)
    same(c, memory.encode(signal), 1e-12)


ORDERS = {"euler": 1, "backward_euler": 1, "bilinear": 2}


@pytest.mark.parametrize("method", ORDERS)
def test_orders_of_discretisations(method):
    A, B = lagt(4)
    errors = []
    for steps in (200, 400):
        a, b = discretise(A, B, 1 / steps, method)
        x = torch.zeros(4, dtype=torch.float64)
        for _ in range(steps):
            x = a @ x + b
        errors.append((x - discretise(A, B, 1.0, "zoh")[1]).norm())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.05)


def test_a_held_input_is_exact_even_where_the_matrix_is_singular():
    A = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    a, b = discretise(A, torch.tensor([0.0, 1.0], dtype=torch.float64), 2.0, "zoh")
    same(a, torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64))
    same(b, torch.tensor([2.0, 2.0], dtype=torch.float64))
    A, B = lagt(5)
    first, second = (
        discretise(A, B, 0.3, "zoh"),
        discretise(A, B, torch.tensor([0.1, 0.2], dtype=torch.float64), "zoh"),
    )
    same(second[0][1] @ second[0][0], first[0])
    same(second[0][1] @ second[1][0] + second[1][1], first[1])


def test_the_generalised_rule_holds_the_others():
    A, B = legt(4, 2.0)
    for alpha, method in ((0.0, "euler"), (0.5, "bilinear"), (1.0, "backward_euler")):
        found = discretise(A, B, 0.1, "generalised_bilinear", alpha=alpha)
        for one, other in zip(found, discretise(A, B, 0.1, method), strict=True):
            same(one, other)


def test_legs_is_exact_where_the_input_is_held():
    """exp(log((k+1)/k) A): two steps are one from k to k + 2, and a constant is remembered as a constant."""
    A, B = legs(6)
    a, _ = discretise_scaled(A, B, torch.tensor([3, 4]), "zoh")
    same(a[1] @ a[0], torch.matrix_exp(math.log(5 / 3) * A))
    c = HippoMemory("legs", 6).encode(torch.ones(50), method="zoh")
    assert rmse(HippoMemory("legs", 6).reconstruct(c, torch.arange(40), 50), torch.ones(40)) < 0.05


# What a memory of the whole past keeps of the chirp: the projection itself, and what the recurrence has of it.
LEGS_RMSE = {8: (0.4969, 0.4969), 16: (0.3787, 0.3787), 32: (0.02128, 0.02133), 64: (0.001236, 0.001498)}


@pytest.mark.parametrize("order", LEGS_RMSE)
def test_legs_reconstructs_the_whole_past(order):
    memory, signal = HippoMemory("legs", order), chirp()
    ideal = rmse(memory.reconstruct(memory.project(signal), AGES, LENGTH), signal)
    found = rmse(memory.reconstruct(memory.encode(signal), AGES, LENGTH), signal)
    assert (ideal, found) == pytest.approx(LEGS_RMSE[order], rel=1e-3)


@pytest.mark.parametrize(("method", "expected"), [("backward_euler", 0.0527), ("euler", 0.0593), ("zoh", 0.02144)])
def test_discretisation_limits_what_legs_remembers(method, expected):
    memory, signal = HippoMemory("legs", 32), chirp()
    assert rmse(memory.reconstruct(memory.encode(signal, method=method), AGES, LENGTH), signal) == pytest.approx(
        expected, rel=2e-3
    )


def test_both_conventions_of_the_legs_index_are_valid():
    memory, signal = HippoMemory("legs", 32), chirp()
    c, matrices = torch.zeros(32, dtype=torch.float64), memory.matrices()
    decays, inputs = discretise_scaled(*matrices, torch.arange(1, LENGTH), lag=1)
    for k in range(1, LENGTH):
        c = decays[k - 1] @ c + inputs[k - 1] * signal[k]
    assert rmse(memory.reconstruct(c, AGES, LENGTH), signal) == pytest.approx(0.02129, rel=1e-3)


def test_legs_knows_no_unit_of_time():
    memory, signal = HippoMemory("legs", 32), chirp()
    whole, half = memory.encode(signal), memory.encode(signal[::2])
    assert (whole - half).norm() / whole.norm() < 0.02


def test_gradients_of_legs_fall_with_the_inverse_of_time():
    """T times the norm of dc(T) / du(T/2) does not depend on T (arXiv:2008.07669, proposition 5)."""
    A, B = legs(32, "paper")
    decays, inputs = discretise_scaled(A, B, torch.arange(1, 401))
    for time in (100, 200, 400):
        gradient = inputs[time // 2 - 1]
        for k in range(time // 2, time):
            gradient = decays[k] @ gradient
        assert time * gradient.norm().item() == pytest.approx(4.48, abs=0.03)


STEP = 1 / 500


def glide() -> torch.Tensor:
    t = (torch.arange(1500, dtype=torch.float64) + 0.5) * STEP
    return torch.sin(2 * math.pi * (0.7 * t + 0.4 * t**2))


RECENT = (torch.arange(500, dtype=torch.float64) + 0.5) * STEP


def coefficient_error(memory: HippoMemory, signal: torch.Tensor, step: float = 1.0) -> float:
    ideal = memory.project(signal, step)
    return ((memory.encode(signal, step) - ideal).norm() / ideal.norm()).item()


def test_legt_keeps_the_window_that_it_is_told():
    """The S4 code's LegT, window 2, is wrong by as much as the signal where its window is taken for 1."""
    signal, memory = glide(), HippoMemory("legt", 32, 2.0)
    recent = signal.flip(0)[:500]
    c = memory.encode(signal, STEP)
    assert rmse(memory.reconstruct(c, RECENT), recent) < 1e-3
    assert rmse(HippoMemory("legt", 32, 1.0).reconstruct(c, RECENT), recent) == pytest.approx(1.022, abs=2e-3)


def test_the_error_of_fout_falls_only_where_the_seam_is_right():
    signal = glide()
    right = [coefficient_error(HippoMemory("fout", order), signal, STEP) for order in (17, 65)]
    wrong = [coefficient_error(HippoMemory("fout_biased", order), signal, STEP) for order in (17, 65)]
    assert right == pytest.approx([0.1441, 0.0363], rel=1e-2)
    assert wrong == pytest.approx([0.4129, 0.4075], rel=1e-2)
    memory, recent = HippoMemory("fout", 129), signal.flip(0)[:500]
    found, ideal = (memory.reconstruct(c(signal, STEP), RECENT) for c in (memory.encode, memory.project))
    assert rmse(found, recent) == pytest.approx(rmse(ideal, recent), abs=4e-3)


def test_the_error_of_fous_falls_with_its_order():
    signal = torch.sin(2 * math.pi * 1.3 * (torch.arange(800).double() + 0.5) / 800)
    errors = [coefficient_error(HippoMemory("fous", order), signal) for order in (9, 17, 49)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


def test_lagt_remembers_what_is_recent_best():
    signal, memory = glide(), HippoMemory("lagt", 64, 0.02)
    seen = memory.reconstruct(memory.encode(signal, STEP), RECENT) - signal.flip(0)[:500]
    assert seen[20:200].abs().max() < 0.1 < seen[300:].abs().max() + 0.1


def test_without_time_the_matrix_of_legs_forgets_exponentially():
    """x' = A x + B u with LegS's matrix, as S4 has it, sees the past under e^-age, not the whole of it alike."""
    A, B = legs(16)
    decay, value = discretise(A, B, 0.01, "zoh")
    early, late = value, torch.linalg.matrix_power(decay, 1000) @ value
    assert late.norm() / early.norm() < 1e-3
    scaled = HippoMemory("legs", 16)
    spike = torch.zeros(1100)
    spike[99] = 1.0
    assert scaled.encode(spike).norm() / scaled.encode(spike[:100]).norm() > 1e-2


@pytest.mark.parametrize("measure", MEASURES)
def test_memories_take_batches_and_reconstruct_them(measure):
    memory, signal = HippoMemory(measure, 9, 20.0), torch.stack((chirp(60), chirp(60).flip(0)))
    c = memory.encode(signal)
    assert c.shape == memory.project(signal).shape == (2, 9)
    same(c[1], memory.encode(signal[1]))
    assert memory.reconstruct(c, torch.arange(15), 60.0).shape == (2, 15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HippoMemory("legx", 4), "legs, legt"),
        (lambda: HippoMemory("legs", 0), "order must be at least 1"),
        (lambda: HippoMemory("legt", 4, 0.0), "window must be above 0"),
        (lambda: legs(4, "papers"), "scaling must be one of"),
        (lambda: lagt(4, alpha=-1.0), "above -1"),
        (lambda: discretise(*legs(4), 1.0, "tustin"), "method must be one of"),
        (lambda: discretise(*legs(4), 1.0, "generalised_bilinear"), "alpha belongs to"),
        (lambda: discretise(*legs(4), 1.0, "zoh", alpha=0.5), "alpha belongs to"),
        (lambda: discretise(*legs(4), 1.0, "generalised_bilinear", alpha=2.0), r"alpha must lie in \[0, 1\]"),
        (lambda: discretise(legs(4)[0], legs(5)[1], 1.0), r"A must be \(n n\)"),
        (lambda: discretise_scaled(*legs(4), 0), "count must be at least 1"),
        (lambda: discretise_scaled(*legs(4), 2, "zoh", lag=1), "lag must be 0"),
        (lambda: legs_solve(torch.ones(3), -1.0), "scale must not be negative"),
        (lambda: laguerre_nodes(500), "points must be 1 to 300"),
        (lambda: HippoMemory("legs", 4).reconstruct(torch.ones(4), torch.ones(2)), "needs `past`"),
        (lambda: projector(torch.ones_like, lambda s, t: s, *legendre_nodes(4), now=0.0), "`now` must be where"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def run_cell(form: str, measure: str, method: str, masked: bool) -> list[torch.Tensor]:
    """Outputs, final states and all gradients of a gated memory with random weights."""
    torch.manual_seed(0)
    b, t, d, m, n = 3, 70, 5, 2, 6
    shapes = ((b, t, 2 * d), (2 * d, d), (2 * d, m * n), (m, d), (m,), (b, d), (b, m, n))
    x, *weights, h, c = (0.4 * torch.randn(shape, dtype=torch.float64) for shape in shapes)
    leaves = [part.requires_grad_() for part in (x, *weights, h, c)]
    real, kept = (torch.rand(b, t) > share if masked else None for share in (0.3, 0.1))
    count = (torch.ones(b, t, dtype=torch.bool) if real is None else real).cumsum(1) if measure == "legs" else None
    memory, options = HippoMemory(measure, n, 20.0), {"method": method, "count": count, "kept": kept, "real": real}
    y, state = gated_memory(x, CellWeights(*weights), memory, (h, c), form=form, **options)
    loss = sum((part * torch.randn_like(part)).sum() for part in (y, *state))
    return [y, *state, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "zoh"])
@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
def test_forms_of_the_gated_memory_agree(measure, method, masked):
    expected = run_cell("sequential", measure, method, masked)
    for found, part in zip(run_cell("fast", measure, method, masked), expected, strict=True):
        same(found, part, 1e-12)


def test_memory_of_training_the_cell_is_linear_in_time():
    """What the backward pass keeps: the inputs, h and c of every token, and nothing else that grows."""
    kept = []
    for t in (64, 128):
        sizes: list[int] = []
        b, d, m, n = 2, 8, 2, 4
        shapes = ((b, t, 2 * d), (2 * d, d), (2 * d, m * n), (m, d), (m,), (b, d), (b, m, n))
        x, *weights, h, c = (torch.randn(shape).requires_grad_() for shape in shapes)
        with torch.autograd.graph.saved_tensors_hooks(lambda p, s=sizes: s.append(p.numel()) or p, lambda p: p):
            count = torch.arange(1, t + 1)[None]
            gated_memory(x, CellWeights(*weights), HippoMemory("legs", n), (h, c), count=count, form="fast")
        kept.append(sum(sizes))
    assert kept[1] - kept[0] == 64 * (2 * (2 * 8 + 8 + 2 * 4) + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(1, 3, 7)}, r"x must be \(b t 4\)"),
        ({"count": None}, "a scaled measure needs `count`"),
        ({"memory": HippoMemory("fous", 3)}, "must be real"),
        ({"state": (torch.zeros(1, 2), torch.zeros(1, 1, 4))}, r"the state c must be \(1, 1, 3\)"),
        ({"form": "quick"}, "form must be one of"),
    ],
)
def test_bad_input_of_the_cell_is_named(changes, message):
    weights = CellWeights(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(1, 2), torch.zeros(1))
    given = {"x": torch.zeros(1, 3, 4), "weights": weights, "memory": HippoMemory("legs", 3)}
    given |= {"state": (torch.zeros(1, 2), torch.zeros(1, 1, 3)), "count": torch.tensor([[1, 2, 3]])}
    with pytest.raises(ValueError, match=message):
        gated_memory(**given | changes)


@pytest.fixture
def example():
    """examples/hippo.py as a module."""
    path = Path(__file__).parents[1] / "examples" / "hippo.py"
    spec = importlib.util.spec_from_file_location("example_hippo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_writes_a_table_and_a_drawing(example, tmp_path, capsys):
    assert example.main(["--orders", "4", "24", "--samples", "200", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "hippo.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    errors = {
        name: float(recent) for name, recent in re.findall(r"^\| (\w+) \|.*\| ([\d.]+) / [\d.-]+ \|$", table, re.M)
    }
    assert set(errors) == set(MEASURES)
    assert errors["legt"] < errors["fout"] < errors["fout_biased"]
    assert (tmp_path / "hippo.png").exists()


def test_the_example_complains_in_one_line(example, tmp_path, capsys):
    assert example.main(["--orders", "0", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("hippo.py: error: --samples must be at least 2 and --orders")
