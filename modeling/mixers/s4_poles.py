"""The parameters of systems that are given by their poles: s' = A s + B u, y = 2 Re(C s), one of each conjugate pair.

    A = -f(A_real) - i A_imag        dt = f(dt)        f: exp, softplus, ... as the configuration says

Complex numbers are stored as pairs (re, im). Everything that depends on parameters alone is computed in complex128.
"""

import math

import torch
from torch import Tensor, nn

from ..state import State
from .s4_init import FUNCTIONS, INVERSES, clipped, diagonal_poles, hippo_parts
from .s4_kernel import ConvolutionKernel
from .step_size import fill


class PoleKernel(ConvolutionKernel):
    """For a NoriaS4Config with kernel "s4", "s4d" or "dss"."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.init, self.real = config.init, config.real_states
        self.width, self.steps = config.hidden_size, (config.dt_min, config.dt_max)
        self.dt_act, self.real_act = config.dt_act, config.real_act
        parts = 1 if self.real else 2
        self.size = config.state_size // parts
        directions = 2 if config.bidirectional else 1
        self.dt = nn.Parameter(torch.empty(self.width, 1))
        self.A_real = nn.Parameter(torch.empty(config.num_ssm, self.size))
        self.A_imag = None if self.real else nn.Parameter(torch.empty(config.num_ssm, self.size))
        self.B = nn.Parameter(torch.empty(config.num_ssm, self.size, parts)) if config.input_matrix else None
        self.C = nn.Parameter(torch.empty(directions, self.width, self.size, parts))

    @property
    def dtype(self) -> torch.dtype:
        """What responses are computed in."""
        return torch.promote_types(self.C.dtype, torch.float32)

    def initialize(self, std: float) -> None:
        low, high = (math.log(step) for step in self.steps)
        drawn = torch.empty(self.dt.shape, dtype=torch.float64).uniform_(low, high).exp()
        fill(self.dt, INVERSES[self.dt_act](drawn))
        poles, inputs = self.draw_poles()
        fill(self.A_real, INVERSES[self.real_act]((-poles.real).clamp(min=1e-4)).expand_as(self.A_real))
        if self.A_imag is not None:
            fill(self.A_imag, (-poles.imag).expand_as(self.A_imag))
        if self.B is not None:
            fill(self.B, self.as_pairs(inputs).expand_as(self.B))
        nn.init.normal_(self.C, std=self.C.shape[-1] ** -0.5)

    def draw_poles(self) -> tuple[Tensor, Tensor]:
        """Poles and input weights (n), complex128, that every system begins from."""
        poles = diagonal_poles(self.init, self.size, self.real)
        if self.init == "legs" and not self.real:
            return poles, clipped(hippo_parts("legs", 2 * self.size, 1)[2])
        return poles, torch.ones_like(poles)

    def as_pairs(self, values: Tensor) -> Tensor:
        return values.real[..., None] if self.real else torch.view_as_real(values)

    def as_complex(self, pairs: Tensor) -> Tensor:
        """(... 2) or, of real states, (... 1) -> (...) complex128."""
        pairs = pairs.double()
        return torch.complex(pairs[..., 0], torch.zeros_like(pairs[..., 0]) if self.real else pairs[..., 1])

    def every_channel(self, values: Tensor) -> Tensor:
        """values (... num_ssm n) -> (... h n): channels take the systems in turn."""
        repeats = self.width // values.shape[-2]
        return values if repeats == 1 else values.repeat((1,) * (values.dim() - 2) + (repeats, 1))

    def continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (h 1) float64; A (h n), B (h n) and C (directions h n) complex128."""
        dt = FUNCTIONS[self.dt_act](self.dt.double())
        real = -FUNCTIONS[self.real_act](self.A_real.double())
        imag = torch.zeros_like(real) if self.A_imag is None else -self.A_imag.double()
        poles = self.every_channel(torch.complex(real, imag))
        inputs = torch.ones_like(poles) if self.B is None else self.every_channel(self.as_complex(self.B))
        return dt, poles, inputs, self.as_complex(self.C)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        return (torch.zeros(batch, self.width, self.size, 2, dtype=wide, device=device),)
