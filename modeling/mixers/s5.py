r"""S5, one diagonal system for all channels: Smith et al. 2022, Simplified State Space Layers (arXiv:2208.04933).

    s_t = z s_(t-1) + c (B u_t),   y_t = 2 Re(C s_t)                                       eq. 2, 5, 6
    zoh        z = e^{dt A}                           c = (e^{dt A} - 1) / A
    bilinear   z = (1 + dt A / 2) / (1 - dt A / 2)    c = dt / (1 - dt A / 2)

State: s (b n 2), real and imaginary parts, in float32.  Time: O(t), O(1) for a token.
Each of the n states, one of each conjugate pair, has a step dt of its own; B and C are linear maps over real and
imaginary parts side by side. In both directions y_t has a second term of the kind, run from the end, as in the
authors' code: u_t counts in each.
"""

import math

import torch
from torch import Tensor, nn

from ..ops.invariant_recurrence import invariant_recurrence
from ..state import Context, State
from .s4_diagonal import exp_ratio
from .s4_init import FUNCTIONS, INVERSES, diagonal_poles
from .s4_kernel import StateSpaceKernel
from .step_size import fill


class S5Kernel(StateSpaceKernel):
    """For a NoriaS4Config with kernel "s5"."""

    def __init__(self, config) -> None:
        super().__init__(config)
        width, self.size = config.hidden_size, config.state_size // 2
        self.init, self.steps = config.init, (config.dt_min, config.dt_max)
        self.dt_act, self.real_act = config.dt_act, config.real_act
        self.bilinear = config.discretization == "bilinear"
        self.dt = nn.Parameter(torch.empty(self.size))
        self.A_real = nn.Parameter(torch.empty(self.size))
        self.A_imag = nn.Parameter(torch.empty(self.size))
        self.in_proj = nn.Linear(width, 2 * self.size, bias=False)
        self.out_proj = nn.Linear(2 * self.size, width, bias=False)
        self.back_proj = nn.Linear(2 * self.size, width, bias=False) if config.bidirectional else None

    def initialize(self, std: float) -> None:
        """Poles as configured, steps evenly in their logarithm, complex maps of gain one."""
        low, high = (math.log(step) for step in self.steps)
        drawn = torch.empty(self.size, dtype=torch.float64, device=self.dt.device).uniform_(low, high).exp()
        fill(self.dt, INVERSES[self.dt_act](drawn))
        poles = diagonal_poles(self.init, self.size, real=False)
        fill(self.A_real, INVERSES[self.real_act]((-poles.real).clamp(min=1e-4)))
        fill(self.A_imag, -poles.imag)
        nn.init.normal_(self.in_proj.weight, std=(2 * self.in_proj.in_features) ** -0.5)
        for proj in (self.out_proj, self.back_proj):
            if proj is not None:
                nn.init.normal_(proj.weight, std=(2 * self.size) ** -0.5)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        return (torch.zeros(batch, self.size, 2, dtype=wide, device=device),)

    def system(self) -> tuple[Tensor, Tensor]:
        """z and c (n), complex128."""
        dt = FUNCTIONS[self.dt_act](self.dt.double())
        step = dt * torch.complex(-FUNCTIONS[self.real_act](self.A_real.double()), -self.A_imag.double())
        if self.bilinear:
            return (1 + step / 2) / (1 - step / 2), dt / (1 - step / 2)
        return torch.exp(step), dt * exp_ratio(step)

    def forward(self, u: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        decay, scale = self.system()
        weights = self.dt.dtype
        wide = torch.promote_types(weights, torch.float32)
        inputs = torch.complex(*self.in_proj(u.to(weights)).to(wide).chunk(2, dim=-1))
        inputs = inputs * scale.to(inputs.dtype)
        before = None if state is None else torch.view_as_complex(state[0].contiguous()).to(inputs.dtype)
        mask, segments = context.mask, context.segments
        s, last = invariant_recurrence(decay, inputs, state=before, segments=segments, mask=mask)
        y = self.out_proj(parts(s).to(weights))
        if self.back_proj is not None and not context.causal:
            mask = None if mask is None else mask.flip(1)
            segments = None if segments is None else (segments[:, -1:] - segments).flip(1)
            back, _ = invariant_recurrence(decay, inputs.flip(1), segments=segments, mask=mask)
            y = y + self.back_proj(parts(back.flip(1)).to(weights))
        return (2 * y).to(u.dtype), (torch.view_as_real(last),)


def parts(s: Tensor) -> Tensor:
    """Complex (b t n) -> real and imaginary parts side by side (b t 2n)."""
    return torch.cat((s.real, s.imag), dim=-1)
