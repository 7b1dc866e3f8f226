r"""S4: Gu et al. 2021, Efficiently Modeling Long Sequences with Structured State Spaces (arXiv:2111.00396).

    s' = (\Lambda - P P^*) s + B u,   y = 2 Re(C s),   made discrete by the bilinear rule with step dt
    \hat K(w) = \frac{2}{1+w} [\tilde C R^{-1} B - \tilde C R^{-1} P (1 + P^* R^{-1} P)^{-1} P^* R^{-1} B]    lemma C.3
    R = \frac{2}{dt} \frac{1-w}{1+w} - \Lambda,   \tilde C = C (I - \bar A^L),   K = irfft(\hat K)  at w^L = 1

Sums run over conjugate pairs: \Lambda, P, B, C hold one of each. `kernel_length` = L > 0 says that the parameter is
\tilde C for that L, as published checkpoints store it; C is solved from it where needed.

State: s (b h n 2) in float32 and, where `kernel_length` > 0, C (b h 2n), solved once.  Time: O((n + log t) t) for the
kernel, O(n) for a token, by the Woodbury identity.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.cauchy import cauchy, nodes
from ..ops.dense_system import absorb, apply_power, respond
from ..ops.dispatch import is_tracing_graph
from ..ops.recording import is_recording
from ..state import State
from .s4_init import clipped, hippo_parts
from .s4_poles import PoleKernel
from .step_size import fill

# Of a float64 number's 16 digits half are given to the damping, half stay to the response.
ALIAS = 1e-8
# Complex numbers that the steps of the generating function have at hand at a time: two megabytes.
CACHED = 2**17


class LowRankSystem(NamedTuple):
    """dt (h 1); poles, inputs (h n); outputs (directions h n); low (rank h n): float64 and complex128, continuous."""

    dt: Tensor
    poles: Tensor
    inputs: Tensor
    outputs: Tensor
    low: Tensor


class LowRankPace(NamedTuple):
    """What a token needs: scale, inputs (h n), rows, columns (rank h n), complex128; outputs (h 2n), real, or None."""

    scale: Tensor
    rows: Tensor
    columns: Tensor
    inputs: Tensor
    outputs: Tensor | None


class LowRankKernel(PoleKernel):
    """S4, for a NoriaS4Config."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.rank, self.length = config.rank, config.kernel_length
        self.P = nn.Parameter(torch.empty(self.rank, config.num_ssm, self.size, 2))

    def initialize(self, std: float) -> None:
        super().initialize(std)
        low = hippo_parts(self.init, 2 * self.size, self.rank)[1]
        fill(self.P, self.as_pairs(low)[:, None].expand_as(self.P))

    def draw_poles(self) -> tuple[Tensor, Tensor]:
        poles, _, inputs = hippo_parts(self.init, 2 * self.size, self.rank)
        return poles, clipped(inputs)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        (empty,) = super().initial_state(batch, dtype, device)
        if not self.length:
            return (empty,)
        if device.type == "meta":
            return empty, empty.flatten(-2)
        outputs = self.solved_outputs(self.system())[0].to(device=device, dtype=empty.dtype)
        return empty, outputs.expand(batch, -1, -1).clone()

    def system(self) -> LowRankSystem:
        return LowRankSystem(*self.continuous(), self.every_channel(self.as_complex(self.P)))

    # the recurrence, by Woodbury

    def solve_half_step(self, system: LowRankSystem, x: Tensor) -> Tensor:
        """(I - dt A / 2)^(-1) x for x (... h n)."""
        scale, spread = self.woodbury(system)
        near = torch.linalg.solve(spread, to_real(scale * x, system.low)[..., None])[..., 0]
        return scale * (x - system.dt / 2 * from_real(near, system.low))

    def woodbury(self, system: LowRankSystem) -> tuple[Tensor, Tensor]:
        """R = (I - dt \\Lambda / 2)^(-1) (h n), and I + dt P^* R P (h rank rank), over all pairs."""
        scale = 1 / (1 - system.dt / 2 * system.poles)
        spread = torch.einsum("rhn,hn,qhn->hrq", system.low.conj(), scale, system.low).real * system.dt[..., None]
        return scale, spread + torch.eye(self.rank, dtype=spread.dtype, device=spread.device)

    def matrix(self, system: LowRankSystem) -> Tensor:
        """The discrete A, real (h 2n 2n), on states (re, im): 2 (I - dt A / 2)^(-1) - I, as in `pace`."""
        unit = torch.eye(self.size, dtype=system.poles.dtype, device=system.poles.device)
        basis = torch.cat([unit, 1j * unit])[:, None].expand(-1, self.width, -1)
        return joined(self.solve_half_step(system, 2 * basis) - basis).permute(1, 2, 0)

    def discrete_inputs(self, system: LowRankSystem) -> Tensor:
        return self.solve_half_step(system, system.dt * system.inputs)

    # C and C~

    def solved_outputs(self, system: LowRankSystem) -> Tensor:
        """C of y = C s, real (directions h 2n)."""
        outputs = readout(system.outputs)
        if not self.length:
            return outputs
        matrix = self.matrix(system)
        rest = torch.eye(2 * self.size, dtype=matrix.dtype, device=matrix.device)
        rest = rest - torch.linalg.matrix_power(matrix, self.length)
        return torch.linalg.solve(rest.transpose(-1, -2), outputs[..., None])[..., 0]

    def truncated_outputs(self, system: LowRankSystem, length: int) -> Tensor:
        """C~ = C (I - A^length) (directions h n) complex, for the C of y = 2 Re(C s)."""
        outputs = self.solved_outputs(system)
        matrix = self.matrix(system).transpose(-1, -2)
        count = torch.full((1, 1), length, device=outputs.device)
        return of_pairs(outputs - apply_power(matrix, outputs[:, :, None], count, length)[:, :, 0])

    def impulse(self, system: LowRankSystem, length: int) -> Tensor:
        """K (directions h length), without powers of A where C~ is stored or single precision is asked for.

        On the circle |w|^length = ALIAS what follows `length` arrives ALIAS times smaller, and no C~ is needed.
        """
        whole, damping = length, 0.0
        if is_tracing_graph():
            whole = 2 * length  # a program for any length needs to know that the number of nodes is even
            outputs = self.truncated_outputs(system, whole)
        elif length <= self.length:
            whole, outputs = self.length, system.outputs
        elif self.dtype == torch.float64:
            outputs = self.truncated_outputs(system, whole)
        else:
            outputs, damping = of_pairs(self.solved_outputs(system)), -math.log(ALIAS) / length
        found = torch.fft.irfft(self.spectrum(system, outputs, whole, damping), whole)[..., :length]
        if damping:
            found = found * torch.arange(length, device=found.device).mul(damping).exp()
        return found.to(self.dtype)

    def spectrum(self, system: LowRankSystem, outputs: Tensor, length: int, damping: float) -> Tensor:
        """`generating`, some channels at a time, so that what lies between its steps stays in the cache."""
        sums = (self.rank + 1) * (self.rank + len(outputs)) * (length // 2 + 1)
        if is_recording() or self.width * sums <= CACHED:
            return self.generating(system, outputs, length, damping)
        parts = zip(*(x.split(max(1, CACHED // sums), dim=-2) for x in (*system, outputs)), strict=True)
        return torch.cat([self.generating(LowRankSystem(*x), c, length, damping) for *x, c in parts], dim=1)

    def generating(self, system: LowRankSystem, outputs: Tensor, length: int, damping: float) -> Tensor:
        """K at `length` points |w| = exp(-damping), (directions h length//2+1), from C~ (directions h n)."""
        half = system.dt / 2
        left, right = torch.cat([outputs, system.low.conj()]), torch.cat([system.inputs[None], system.low])
        pairs = (left[:, None] * right).flatten(0, 1)
        c, s = nodes(length, pairs.device, damping)
        sums = cauchy(pairs * half, half * system.poles, c, s).unflatten(0, (len(left), len(right)))
        for _ in range(self.rank):  # Woodbury, one column of P after the other
            row, column = sums[-1:], sums[:, -1:] / (1 + c * sums[-1, -1])
            sums = sums[:-1, :-1] - c * column[:-1] * row[:, :-1]
        return sums[:, 0] * (c + 1j * s)

    # many tokens with a state, and one token

    def readout_of(self, system: LowRankSystem, state: State) -> Tensor:
        return state[1][0] if self.length else self.solved_outputs(system)[0].to(state[0].dtype)

    def respond(self, system: LowRankSystem, state: State, length: int) -> Tensor:
        wide = state[0].dtype
        memory = joined(torch.view_as_complex(state[0].contiguous()))
        return respond(self.matrix(system).to(wide), self.readout_of(system, state), memory, length)

    def absorb(self, system: LowRankSystem, u: Tensor) -> State:
        inputs = joined(self.discrete_inputs(system)).to(u.dtype)
        return self.packed(system, absorb(self.matrix(system).to(u.dtype), inputs, u))

    def decay(self, system: LowRankSystem, state: State, count: Tensor, longest: int) -> State:
        memory = joined(torch.view_as_complex(state[0].contiguous()))
        memory = apply_power(self.matrix(system).to(memory.dtype), memory[:, :, None], count[:, None], longest)
        return parted(memory[:, :, 0]), *state[1:]

    def packed(self, system: LowRankSystem, memory: Tensor) -> State:
        if not self.length:
            return (parted(memory),)
        outputs = self.solved_outputs(system)[0].to(memory.dtype)
        return parted(memory), outputs.expand(len(memory), -1, -1).clone()

    def add(self, kept: State, added: State) -> State:
        return kept[0] + added[0], *added[1:]

    def pace(self) -> LowRankPace:
        """(I - dt A / 2)^(-1) (I + dt A / 2) = 2 (I - dt A / 2)^(-1) - I: one system is solved for a token."""
        system = self.system()
        scale, spread = self.woodbury(system)
        near = torch.einsum("rhn,hrq->qhn", system.low, torch.linalg.inv(spread).to(scale.dtype))
        outputs = None if self.length else self.solved_outputs(system)[0]
        half = system.dt / 2
        return LowRankPace(scale, scale * system.low.conj(), scale * half * near, system.dt * system.inputs, outputs)

    def step(self, pace: LowRankPace, u: Tensor, state: State) -> tuple[Tensor, State]:
        before = torch.view_as_complex(state[0].double().contiguous())
        moved = 2 * before + pace.inputs * u.double()[..., None]
        near = 2 * (pace.rows[:, None] * moved).real.sum(-1, keepdim=True)
        after = pace.scale * moved - (pace.columns[:, None] * near).sum(0) - before
        outputs = state[1] if pace.outputs is None else pace.outputs.to(state[0].dtype)
        y = (joined(after).to(outputs.dtype) * outputs).sum(-1)
        return y.to(u.dtype), (torch.view_as_real(after).to(state[0].dtype), *state[1:])


def to_real(x: Tensor, low: Tensor) -> Tensor:
    """P^* x over the conjugate pairs: x (... h n), low (rank h n) -> (... h rank), real."""
    return 2 * torch.einsum("rhn,...hn->...hr", low.conj(), x).real


def from_real(near: Tensor, low: Tensor) -> Tensor:
    """P near: near (... h rank) real -> (... h n)."""
    return torch.einsum("rhn,...hr->...hn", low, near.to(low.dtype))


def joined(x: Tensor) -> Tensor:
    """(... n) complex -> (... 2n) real: real parts, then imaginary parts."""
    return torch.cat([x.real, x.imag], dim=-1)


def parted(x: Tensor) -> Tensor:
    """(... 2n) -> (... n 2), the inverse of `joined` in pairs."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1)


def readout(outputs: Tensor) -> Tensor:
    """The real row c (... 2n) of 2 Re(C s) = c (re s, im s)."""
    return 2 * torch.cat([outputs.real, -outputs.imag], dim=-1)


def of_pairs(row: Tensor) -> Tensor:
    """The inverse of `readout`: C (... n) complex."""
    real, imag = row.chunk(2, dim=-1)
    return torch.complex(real, -imag) / 2
