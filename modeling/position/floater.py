"""FLOATER: Liu et al. 2020, Learning to Encode Position for Transformer with Continuous Dynamical Model
(arXiv:2003.09229), equation 6.

p(t) = p(s) + integral from s to t of h(p(tau), tau) d tau,     x_k + p(k delta)

p(tau) = s(tau) + y(tau):  s sinusoidal, which solves ds/dtau = G s with G = blockdiag[[0, theta_i], [-theta_i, 0]],
y' = W_2 tanh(W_1 [y; tau] + b_1) + b_2.     W_2, b_2 and y(0) begin at zero: a fresh FLOATER is sinusoidal.

Runge-Kutta of order 4, one step from each position to the next.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..state import Context
from .chain import Chain, make_operator
from .sinusoidal import Sinusoidal

SPACING = 0.1


def integrate(h: Callable[[Tensor, float], Tensor], p: Tensor, t0: float, t1: float, steps: int = 1) -> Tensor:
    """p(t1) of the solution of dp/dtau = h(p, tau) that begins at p(t0) = p, by `steps` equal Runge-Kutta steps.

    The error falls with the fourth power of their size. Raises ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"an integral needs at least one step, not {steps}.")
    size = (t1 - t0) / steps
    for i in range(steps):
        t = t0 + i * size
        one = h(p, t)
        two = h(p + size / 2 * one, t + size / 2)
        three = h(p + size / 2 * two, t + size / 2)
        four = h(p + size * three, t + size)
        p = p + size / 6 * (one + 2 * two + 2 * three + four)
    return p


class Dynamics(nn.Module):
    """y(0) (d), W_1 (hidden d+1), b_1 (hidden), W_2 (d hidden) and b_2 (d)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(dim))
        self.inner_weight = nn.Parameter(torch.empty(hidden, dim + 1))
        self.inner_bias = nn.Parameter(torch.empty(hidden))
        self.outer_weight = nn.Parameter(torch.empty(dim, hidden))
        self.outer_bias = nn.Parameter(torch.empty(dim))

    def initialize(self, std: float) -> None:
        nn.init.normal_(self.inner_weight, std=std)
        for one in (self.start, self.inner_bias, self.outer_weight, self.outer_bias):
            nn.init.zeros_(one)

    def forward(self) -> tuple[Tensor, ...]:
        return self.start, self.inner_weight, self.inner_bias, self.outer_weight, self.outer_bias


def step(weights: Sequence[Tensor], y: Tensor, k: int) -> Tensor:
    """y((k + 1) delta) (d) from y(k delta)."""
    _, inner_weight, inner_bias, outer_weight, outer_bias = weights
    of_code, of_time = inner_weight[:, :-1], inner_weight[:, -1]

    def h(y: Tensor, tau: float) -> Tensor:
        inner = torch.tanh(torch.addmv(inner_bias + tau * of_time, of_code, y))
        return torch.addmv(outer_bias, outer_weight, inner)

    return integrate(h, y, k * SPACING, (k + 1) * SPACING)


class Floater(Chain):
    """Codes `dim` wide for any number of positions, in time linear in the largest. `hidden` is the width inside h."""

    step = staticmethod(step)
    operator = staticmethod(make_operator("floater_codes", step))

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__(Dynamics(dim, hidden))
        self.sinusoidal = Sinusoidal(dim)

    def codes(self, context: Context) -> Tensor:
        flow = super().codes(context)
        return flow + self.sinusoidal.codes(context.positions, flow.dtype)
