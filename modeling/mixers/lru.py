"""The linear recurrent unit: Orvieto et al. 2023, Resurrecting Recurrent Neural Networks (arXiv:2303.06349).

    h_t = lambda * h_(t-1) + gamma * (B x_t),   y_t = Re(C h_t) + D x_t                        eq. 2, 5, 7
    lambda = exp(-exp(nu) + i exp(theta)),      gamma = exp(gamma_log), at first sqrt(1 - |lambda|^2)

State: h (b n 2), real and imaginary part, in float32.  Time: O(t), O(1) for a token.
|lambda| < 1 whatever nu is. B and C are linear maps over the real and imaginary parts side by side. Since gamma does
not change with time it may as well stand behind the recurrence, h_t = lambda h_(t-1) + B x_t and y_t = C (gamma h_t).
nu, theta, gamma and D are kept in float32. lambda is computed in float64.
"""

import torch
from torch import Tensor, nn

from ..ops.invariant_recurrence import invariant_recurrence
from ..state import Context, State
from .step_size import fill


class LRU(nn.Module):
    """x (b t d) -> (b t d), for a NoriaLRUConfig."""

    _no_weight_decay = ("nu_log", "theta_log", "gamma_log")

    def __init__(self, config) -> None:
        super().__init__()
        width, self.size = config.hidden_size, config.state_size
        self.ring = config.r_min, config.r_max, config.max_phase
        self.in_proj = nn.Linear(width, 2 * self.size, bias=config.use_bias)
        self.out_proj = nn.Linear(2 * self.size, width, bias=config.use_bias)
        self.nu_log = nn.Parameter(torch.empty(self.size))
        self.theta_log = nn.Parameter(torch.empty(self.size))
        self.gamma_log = nn.Parameter(torch.empty(self.size))
        self.D = nn.Parameter(torch.empty(width)) if config.direct_term else None

    def initialize(self, std: float) -> None:
        """lambda evenly over a ring, gamma so that white inputs keep E|h|^2 = 1 (sections 3.2-3.4)."""
        least, most, max_phase = self.ring
        # Strictly inside the unit interval: neither end of it has finite logarithms.
        area, turn = torch.rand(2, self.size, dtype=torch.float64, device=self.nu_log.device) * (1 - 2e-7) + 1e-7
        square = area * (most**2 - least**2) + least**2
        fill(self.nu_log, (-0.5 * square.log()).log())
        fill(self.theta_log, (max_phase * turn).log())
        fill(self.gamma_log, 0.5 * (1 - square).log())
        nn.init.normal_(self.in_proj.weight, std=(2 * self.in_proj.in_features) ** -0.5)
        nn.init.normal_(self.out_proj.weight, std=self.size**-0.5)
        if self.D is not None:
            nn.init.normal_(self.D)

    def eigenvalues(self) -> Tensor:
        """lambda (n), complex128."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log.double())), torch.exp(self.theta_log.double()))

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        return (torch.zeros(batch, self.size, 2, dtype=wide, device=device),)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        wide = torch.promote_types(x.dtype, torch.float32)
        before = None if state is None else torch.view_as_complex(state[0])
        inputs = torch.complex(*self.in_proj(x).to(wide).chunk(2, dim=-1)) * torch.exp(self.gamma_log.to(wide))
        h, last = invariant_recurrence(
            self.eigenvalues(), inputs, state=before, segments=context.segments, mask=context.mask
        )
        y = self.out_proj(torch.cat((h.real, h.imag), dim=-1).to(x.dtype))
        if self.D is not None:
            y = torch.addcmul(y.to(wide), x.to(wide), self.D.to(wide)).to(x.dtype)
        return y, (torch.view_as_real(last),)
