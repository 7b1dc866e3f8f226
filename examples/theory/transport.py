"""Optimal transport between two weighted sets of points, as linear programs that SciPy's HiGHS solves.

Sources: Vincent Herrmann, "Wasserstein GAN and the Kantorovich-Rubinstein Duality", and Su Jianlin,
kexue.fm/archives/6280; the certificates are Farkas' lemma; `sinkhorn` is arXiv:1306.0895, its rounding 1705.09634.

Everywhere `cost` is (n, m), `p` (n) and `q` (m) are weights that sum to 1, and

    primal:  min <G, cost>        G 1 = p, G' 1 = q, G >= 0
    dual:    max p.f + q.g        f[i] + g[j] <= cost[i, j]
    one f:   max p.f - q.f        f[i] - f[j] <= cost[i, j], which wants both sets to have the same points
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Dual(NamedTuple):
    """The value of a dual program and its potentials: f of the first set, g of the second."""

    value: float
    f: Array
    g: Array


class Sinkhorn(NamedTuple):
    """A plan that is feasible, its cost, a lower bound of every plan's cost, and the number of iterations."""

    plan: Array
    upper: float
    lower: float
    iterations: int


def scipy() -> ModuleType:
    """SciPy, whose parts come with their first use. Raises ImportError naming the extra that brings it."""
    try:
        import scipy
    except ImportError as error:
        raise ImportError("exact transport wants SciPy: pip install 'noria[theory]'") from error
    return scipy


def linear_program(objective: Array, **constraints: Any) -> Any:
    """What HiGHS says of min <objective, x> under SciPy's constraints."""
    return scipy().optimize.linprog(objective, method="highs", **constraints)


def solve(objective: Array, **constraints: Any) -> Array:
    """The minimiser of a linear program that must have one."""
    found = linear_program(objective, **constraints)
    if found.status:
        raise ValueError(f"the linear program has no solution: {found.message}")
    return found.x


def check(cost: Array, p: Array, q: Array) -> None:
    """ValueError unless the weights fit the cost, are not negative and have one sum."""
    if cost.shape != (len(p), len(q)):
        raise ValueError(f"a cost of {len(p)} x {len(q)} goes with these weights, got {cost.shape}")
    if min(p.min(), q.min()) < 0 or not np.isclose(p.sum(), q.sum(), rtol=0, atol=1e-9):
        raise ValueError(f"weights must be at least 0 and have one sum, got sums of {p.sum():g} and {q.sum():g}")


def marginals(n: int, m: int) -> Any:
    """A of `A x = [p; q]`, (n + m, n m) sparse: sums over rows and columns of a plan whose rows lie end to end."""
    sparse = scipy().sparse
    rows = sparse.kron(sparse.eye_array(n), np.ones((1, m)))
    columns = sparse.kron(np.ones((1, n)), sparse.eye_array(m))
    return sparse.csr_array(sparse.vstack([rows, columns]))


def primal(cost: Array, p: Array, q: Array) -> Array:
    """The cheapest plan, (n, m)."""
    check(cost, p, q)
    return solve(cost.ravel(), A_eq=marginals(*cost.shape), b_eq=np.concatenate([p, q])).reshape(cost.shape)


def distance(cost: Array, p: Array, q: Array) -> float:
    """The cost of the cheapest plan."""
    return float((primal(cost, p, q) * cost).sum())


def dual(cost: Array, p: Array, q: Array) -> Dual:
    """Kantorovich's dual with two potentials."""
    check(cost, p, q)
    b = np.concatenate([p, q])
    y = solve(-b, A_ub=marginals(*cost.shape).T, b_ub=cost.ravel(), bounds=(None, None))
    return Dual(float(b @ y), *np.split(y, [len(p)]))


def one_function(cost: Array, p: Array, q: Array) -> Dual:
    """The dual with g = -f, which is Kantorovich's and Rubinstein's where the cost is a metric, and less elsewhere."""
    check(cost, p, q)
    n = len(p)
    if cost.shape != (n, n):
        raise ValueError(f"one function for both sets wants the same points in both, got a cost of {cost.shape}")
    first, second = np.divmod(np.arange(n * n), n)
    kept = first != second
    edge = np.arange(kept.sum())
    signs = (np.concatenate([np.ones(len(edge)), -np.ones(len(edge))]), np.concatenate([edge, edge]))
    differences = scipy().sparse.csr_array((signs[0], (signs[1], np.concatenate([first[kept], second[kept]]))))
    # A constant may be added to f; the first value is held so that the solution is one point.
    bounds = [(0, 0)] + [(None, None)] * (n - 1)
    f = solve(q - p, A_ub=differences, b_ub=cost.ravel()[kept], bounds=bounds)
    return Dual(float((p - q) @ f), f, -f)


def c_transform(f: Array, cost: Array) -> Array:
    """f^c[j] = min over i of cost[i, j] - f[i]: the greatest g that goes with f. Of g it is c_transform(g, cost.T)."""
    return (cost - f[:, None]).min(0)


def is_metric(cost: Array) -> bool:
    """Whether costs among one set of points are symmetric, zero only on the diagonal, and obey the triangle's law."""
    off = cost[~np.eye(len(cost), dtype=bool)]
    return bool(
        np.allclose(cost, cost.T) and not np.diag(cost).any() and off.min() > 0 and np.allclose(closure(cost), cost)
    )


def closure(cost: Array) -> Array:
    """The cheapest way from point to point by way of others: the greatest cost below this of the triangle's law."""
    return scipy().sparse.csgraph.shortest_path(cost, directed=True)


def farkas(a: Array, b: Array) -> tuple[Array | None, Array | None]:
    """(x, None) with a x = b and x >= 0, or (None, y) with a' y <= 0 and b.y > 0: exactly one of them exists."""
    found = linear_program(np.zeros(a.shape[1]), A_eq=a, b_eq=b)
    if found.status == 0:
        return found.x, None
    y = solve(-b, A_ub=a.T, b_ub=np.zeros(a.shape[1]), bounds=(-1, 1))
    if b @ y <= 0:
        raise ValueError(f"the system is too near to a solvable one to tell: b.y = {b @ y:g}")
    return None, y


def dual_from_farkas(cost: Array, p: Array, q: Array, value: float, slack: float) -> Dual:
    """Strong duality as Farkas' lemma gives it: no plan costs value - slack, and the witness is a dual point above it.

    The system {A x = [p; q], cost.x = value - slack} has no x >= 0, hence y and a with A' y <= a cost and
    [p; q].y > a (value - slack); a > 0 since A x = [p; q] alone has solutions; so y / a is feasible and worth more.
    """
    a = scipy().sparse.vstack([marginals(*cost.shape), -cost.reshape(1, -1)], format="csr")
    _, witness = farkas(a, np.concatenate([p, q, [slack - value]]))
    if witness is None:
        raise ValueError(f"a plan of cost {value - slack:g} exists, so {value:g} is not the cheapest")
    f, g = np.split(witness[:-1] / witness[-1], [len(p)])
    return Dual(float(p @ f + q @ g), f, g)


def rounded(plan: Array, p: Array, q: Array) -> Array:
    """A plan with exactly the given marginals near to one that has them nearly."""
    plan = plan * np.minimum(1, p / plan.sum(1))[:, None]
    plan = plan * np.minimum(1, q / plan.sum(0))
    rows, columns = p - plan.sum(1), q - plan.sum(0)
    return plan + np.outer(rows, columns) / rows.sum() if rows.sum() > 0 else plan


def sinkhorn(cost: Array, p: Array, q: Array, entropy: float, most: int = 20_000, tolerance: float = 1e-9) -> Sinkhorn:
    """The plan of least <G, cost> - entropy H(G), in logarithms; weights must be greater than 0.

    Its cost after rounding bounds the program's from above, its potential's c-transform from below.
    """
    check(cost, p, q)
    if entropy <= 0 or min(p.min(), q.min()) <= 0:
        raise ValueError(f"entropy and weights must be greater than 0, got {entropy:g} and {min(p.min(), q.min()):g}")
    logsumexp = scipy().special.logsumexp
    log_p, log_q, f, count = np.log(p), np.log(q), np.zeros(len(p)), 0
    while count < most:
        count += 1
        g = entropy * (log_q - logsumexp((f[:, None] - cost) / entropy, axis=0))
        row = logsumexp((g[None] - cost) / entropy, axis=1)
        if np.abs(np.exp(f / entropy + row) - p).sum() < tolerance:
            break
        f = entropy * (log_p - row)
    plan = rounded(np.exp((f[:, None] + g[None] - cost) / entropy), p, q)
    lower = c_transform(f, cost)
    return Sinkhorn(plan, float((plan * cost).sum()), float(p @ f + q @ lower), count)


def by_quantiles(x: Array, y: Array, p: Array, q: Array, power: float = 1.0) -> float:
    """The cost |x - y|^power >= 1 on a line without a program: equal quantiles go together (1-D formula)."""
    a, b = np.argsort(x), np.argsort(y)
    here, there = np.cumsum(p[a]), np.cumsum(q[b])
    ends = np.sort(np.concatenate([here[:-1], there[:-1], [0.0, 1.0]]))
    middle, mass = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    i, j = (np.searchsorted(levels[:-1], middle) for levels in (here, there))
    return float(mass @ np.abs(x[a][i] - y[b][j]) ** power)
