r"""DSS: Gupta et al. 2022, Diagonal State Spaces are as Effective as Structured State Spaces (arXiv:2203.14343).

    K_k = Re(\sum_n C_n B_n r_n z_n^k),   z = e^{dt A}                                         proposition 1
    exp        r = (z - 1) / A
    softmax    r = (z - 1) / (A (z^L - 1)):  the powers of z over L tokens sum up to 1, over A

The published code has 1 / x = x^* / (|x|^2 + 1e-7) in "softmax", and where Re A > 0 it counts powers from the end. L
is `kernel_length`; where that is 0, L is the length of each text, and the system has no recurrence.

State: s (b h n 2) as in S4D, with s_t = z s_(t-1) + B u_t.
"""

import torch
from torch import Tensor

from ..state import Context, State
from .s4_diagonal import DiagonalKernel, DiagonalSystem, exp_ratio

EPSILON = 1e-7


class DSSKernel(DiagonalKernel):
    """For a NoriaS4Config."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.softmax, self.length = config.discretization == "softmax", config.kernel_length
        self.recurrent = not self.softmax or self.length > 0

    def draw_poles(self) -> tuple[Tensor, Tensor]:
        poles, _ = super().draw_poles()
        return poles, torch.randn(poles.shape, dtype=torch.complex128)

    def system(self) -> DiagonalSystem:
        return self.normalised(self.length)

    def normalised(self, length: int) -> DiagonalSystem:
        """The system for a text of `length` tokens; without outputs where the length is not known yet."""
        dt, poles, inputs, outputs = self.continuous()
        step = dt * poles
        if not self.softmax:
            outputs = outputs * dt * exp_ratio(step)
        elif length:
            grows = poles.real > 0
            falling = torch.where(grows, -step, step)
            total = torch.expm1(falling * length) * poles
            outputs = outputs * torch.expm1(falling) * total.conj() / (total.abs().square() + EPSILON)
            outputs = outputs * torch.exp(torch.where(grows, -step * (length - 1), 0.0))
        return DiagonalSystem(step, inputs, outputs)

    def impulse(self, system: DiagonalSystem, length: int) -> Tensor:
        return super().impulse(system if self.recurrent else self.normalised(length), length)

    def respond(self, system: DiagonalSystem, state: State, length: int) -> Tensor:
        self.require_recurrence()
        return super().respond(system, state, length)

    def pace(self) -> tuple[Tensor, Tensor, Tensor]:
        self.require_recurrence()
        return super().pace()

    def require_recurrence(self) -> None:
        if not self.recurrent:
            raise ValueError(
                "a kernel that is normalised over each text's own length cannot continue a text: set `kernel_length`."
            )

    def convolve(self, system: DiagonalSystem, u: Tensor, context: Context, state: State) -> Tensor:
        if self.recurrent or (context.mask is None and context.segments is None):
            return super().convolve(system, u, context, state)
        count = own_lengths(context, u)
        y = torch.zeros_like(u)
        for length in count.unique().tolist():
            known = self.normalised(max(length, 1))
            self.recurrent = True
            y = torch.where((count == length)[:, None], super().convolve(known, u, context, state), y)
            self.recurrent = False
        return y


def own_lengths(context: Context, u: Tensor) -> Tensor:
    """How many real tokens the sequence of each token has, (b t)."""
    shape = (u.shape[0], u.shape[2])
    segments = torch.zeros(shape, dtype=torch.int64, device=u.device) if context.segments is None else context.segments
    real = torch.ones(shape, dtype=torch.int64, device=u.device) if context.mask is None else context.mask.long()
    segments = segments.expand(shape)
    totals = torch.zeros(shape[0], int(segments.max()) + 1, dtype=torch.int64, device=u.device)
    return totals.scatter_add(1, segments, real.expand(shape)).gather(1, segments)
