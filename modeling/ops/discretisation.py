r"""From a differential equation to a recurrence.

    x' = A x + B u      ->      x_k = \bar A x_(k-1) + \bar B u_k           discretise
    x' = (A x + B u) / t  ->    the same, with matrices that depend on k    discretise_scaled

The input is taken as constant over a step, except by "bilinear" in the wide sense of its authors. The generalised
bilinear rule with weight alpha of the new state holds Euler (0), bilinear (1/2) and backward Euler (1):

    \bar A = (I - \alpha h A)^{-1} (I + (1-\alpha) h A)      \bar B = (I - \alpha h A)^{-1} h B
"""

import torch
from torch import Tensor

METHODS = ("euler", "backward_euler", "bilinear", "generalised_bilinear", "zoh")
_WEIGHTS = {"euler": 0.0, "backward_euler": 1.0, "bilinear": 0.5}


def discretise(
    A: Tensor, B: Tensor, step: float | Tensor, method: str = "bilinear", alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    """A (n n), B (n) or (n m), step a number or (*s) -> the matrices of the recurrence, (*s n n) and (*s n) or
    (*s n m).

    The orders of accuracy are 1 for Euler and backward Euler, 2 for bilinear; "zoh" is exact for inputs that are
    constant over each step, whether A can be inverted or not. "generalised_bilinear" takes the weight `alpha` of the
    new state. Differentiable in A, B and step. Raises ValueError for shapes that do not fit, an unknown method, or an
    `alpha` outside [0, 1], missing or superfluous.
    """
    weight = _weight(method, alpha)
    _check(A, B)
    step = torch.as_tensor(step, dtype=A.real.dtype, device=A.device)[..., None, None]
    columns = B if B.dim() == 2 else B[:, None]
    first, into = _hold(A, columns, step) if weight is None else _bilinear(A, columns, step, step, weight)
    return first, into if B.dim() == 2 else into[..., 0]


def discretise_scaled(
    A: Tensor, B: Tensor, count: int | Tensor, method: str = "bilinear", alpha: float | None = None, lag: int = 0
) -> tuple[Tensor, Tensor]:
    """The recurrence that takes a memory of the whole past in its sample number `count` (*s), counted from 1.

    Since the equation knows no unit of time, neither does the recurrence: the step is 1/count. "zoh" integrates
    exactly from count to count + 1, exp(log((count + 1) / count) A). `lag` = 1 gives the variant that uses
    A / (count + 1) for the new and A / count for the old state, the input at 1/count: bilinear and its relatives only.

    Returns the matrices (*s n n) and (*s n). Raises ValueError for what `discretise` refuses, a vanishing count, or a
    lag that is neither 0 nor 1.
    """
    weight = _weight(method, alpha)
    _check(A, B)
    if lag not in (0, 1) or (lag and weight is None):
        raise ValueError(f"lag must be 0, or 1 for a bilinear method, not {lag} with {method!r}")
    count = torch.as_tensor(count, device=A.device).to(A.real.dtype)[..., None, None]
    if not torch.compiler.is_compiling() and count.device.type != "meta" and bool((count < 1).any()):
        raise ValueError("count must be at least 1: the first sample has number 1")
    columns = B if B.dim() == 2 else B[:, None]
    if weight is None:
        first, into = _hold(A, columns, torch.log1p(1 / count))
    else:
        first, into = _bilinear(A, columns, 1 / count, 1 / (count + lag), weight)
    return first, into if B.dim() == 2 else into[..., 0]


def _bilinear(A: Tensor, B: Tensor, old: Tensor, new: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The generalised bilinear rule with one step for the old state and the input, and one for the new state."""
    identity = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    both = torch.cat((identity + (1 - weight) * old * A, old * B), dim=-1)
    both = both if weight == 0 else torch.linalg.solve(identity - weight * new * A, both)
    return both[..., : A.shape[0]], both[..., A.shape[0] :]


def _hold(A: Tensor, B: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """exp([[hA, hB], [0, 0]]) holds both matrices, and needs no inverse of A."""
    n, inputs = B.shape
    above = torch.cat((A, B.to(A.dtype)), dim=1)
    whole = torch.cat((above, above.new_zeros(inputs, n + inputs)), dim=0)
    exponential = torch.matrix_exp(step * whole)
    return exponential[..., :n, :n], exponential[..., :n, n:]


def _weight(method: str, alpha: float | None) -> float | None:
    """The weight of the new state, or None for the exact method."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if (alpha is None) == (method == "generalised_bilinear"):
        raise ValueError(f"alpha belongs to the method 'generalised_bilinear', and to no other: {method!r}, {alpha}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    return alpha if alpha is not None else _WEIGHTS.get(method)


def _check(A: Tensor, B: Tensor) -> None:
    if A.dim() != 2 or A.shape[0] != A.shape[1] or B.dim() not in (1, 2) or B.shape[0] != A.shape[0]:
        raise ValueError(f"A must be (n n), B (n) or (n m), not {tuple(A.shape)} and {tuple(B.shape)}")
