r"""Diagonal state-space kernels.

S4D: Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models (arXiv:2206.11893).

    s_t = z s_(t-1) + \bar B u_t,   y_t = 2 Re(C s_t),   K_k = 2 Re(\sum_n C_n \bar B_n z_n^k)             eq. 5, 6
    zoh        z = e^{dt A}                           \bar B = B (e^{dt A} - 1) / A
    bilinear   z = (1 + dt A / 2) / (1 - dt A / 2)    \bar B = B dt / (1 - dt A / 2)

State: s (b h n 2), real and imaginary parts, in float32.  Time: O(t n) for the kernel, O(n) for a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.vandermonde import powers, vandermonde, weighted_past
from ..state import State
from .s4_poles import PoleKernel


class DiagonalSystem(NamedTuple):
    """log_z (h n), inputs (h n) and outputs (directions h n), complex128; y_t = Re(outputs s_t)."""

    log_z: Tensor
    inputs: Tensor
    outputs: Tensor


class DiagonalKernel(PoleKernel):
    """S4D, for a NoriaS4Config."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.bilinear = config.discretization == "bilinear"

    def system(self) -> DiagonalSystem:
        dt, poles, inputs, outputs = self.continuous()
        step = dt * poles
        if self.bilinear:
            log_z, inputs = torch.log((1 + step / 2) / (1 - step / 2)), inputs * dt / (1 - step / 2)
        else:
            log_z, inputs = step, inputs * dt * exp_ratio(step)
        return DiagonalSystem(log_z, inputs, 2 * outputs)

    def impulse(self, system: DiagonalSystem, length: int) -> Tensor:
        return vandermonde(system.outputs * system.inputs, system.log_z, length, self.dtype)

    def respond(self, system: DiagonalSystem, state: State, length: int) -> Tensor:
        weights = system.outputs[0] * torch.exp(system.log_z) * torch.view_as_complex(state[0].double())
        return vandermonde(weights, system.log_z, length, state[0].dtype)

    def absorb(self, system: DiagonalSystem, u: Tensor) -> State:
        past = weighted_past(u, system.log_z)
        return (torch.view_as_real(past * system.inputs.to(past.dtype)),)

    def decay(self, system: DiagonalSystem, state: State, count: Tensor, longest: int) -> State:
        real, imag = powers(system.log_z, count[:, None, None].double(), state[0].dtype)
        return (torch.view_as_real(torch.complex(real, imag) * torch.view_as_complex(state[0].contiguous())),)

    def pace(self) -> tuple[Tensor, Tensor, Tensor]:
        """z, inputs and outputs (h n), complex128."""
        system = self.system()
        return torch.exp(system.log_z), system.inputs, system.outputs[0]

    def step(self, pace: tuple[Tensor, Tensor, Tensor], u: Tensor, state: State) -> tuple[Tensor, State]:
        before = torch.view_as_complex(state[0].contiguous())
        factor, inputs, outputs = (x.to(before.dtype) for x in pace)
        after = factor * before + inputs * u[..., None]
        return (outputs * after).sum(-1).real, (torch.view_as_real(after),)


def exp_ratio(x: Tensor) -> Tensor:
    """(e^x - 1) / x, which is 1 at 0; x complex128."""
    small = x.abs() < 1e-5
    return torch.where(small, 1 + x / 2, torch.expm1(torch.where(small, 1.0, x)) / torch.where(small, 1.0, x))
