"""The selective state space of Mamba: Gu and Dao 2023 (arXiv:2312.00752).

    u, z = x W_in                           u through the short convolution and silu
    d, B_t, C_t = u W_x                     Delta_t = softplus(d W_d + dt_bias)
    h_t = exp(Delta_t A) h_(t-1) + Delta_t B_t u_t,   A = -exp(A_log)       section 3.2, B by Euler's rule
    y_t = C_t h_t + D u_t
    out = (y * silu(z)) W_out

State: the last k - 1 inputs of the convolution (b k-1 d_inner), and h (b d_inner n) in float32.
Time: O(t) in blocks, O(1) for a token. A_log, D and dt_bias are kept in float32, and out of weight decay.
In both directions: a centred convolution, and the scan of the tokens plus that of the tokens in reverse with the same
weights, as the tagger of the package `typeseg` has it; D u counts in each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activation import activation
from ..ops.selective_scan import selective_scan
from ..state import Context, State
from .short_convolution import ShortConvolution
from .step_size import draw_step_bias, fill


class SelectiveSSM(nn.Module):
    """x (b t d) -> (b t d), for a NoriaMambaConfig."""

    _no_weight_decay = ("A_log", "D", "dt_bias")

    def __init__(self, config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.inner_size
        self.rank, self.size, self.offset = config.time_step_rank, config.state_size, config.time_step_offset
        self.steps = config.time_step_min, config.time_step_max, config.time_step_floor
        self.output_scale = config.num_hidden_layers**-0.5 if config.rescale_prenorm_residual else 1.0
        self.in_proj = nn.Linear(width, 2 * inner, bias=config.use_bias)
        self.conv = ShortConvolution(inner, config.conv_kernel, config.use_conv_bias, activation(config.hidden_act))
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.size, bias=config.use_projection_bias)
        self.dt_proj = nn.Linear(self.rank, inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=config.use_bias)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, self.size))
        self.D = nn.Parameter(torch.empty(inner))

    def initialize(self, std: float) -> None:
        """A_n = -n in every channel; step sizes as they were configured; branches that do not swell the residual."""
        fill(self.A_log, torch.arange(1, self.size + 1, device=self.A_log.device).log().expand_as(self.A_log))
        nn.init.ones_(self.D)
        draw_step_bias(self.dt_bias, *self.steps)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        nn.init.normal_(self.out_proj.weight, std=std * self.output_scale)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch, *self.A_log.shape, dtype=wide, device=device)
        return self.conv.initial_state(batch, dtype, device), memory

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        inputs, memory = (None, None) if state is None else state
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u, inputs = self.conv(u, context, inputs)
        y, memory = self.scan(u, context, memory)
        return self.out_proj(y * F.silu(gate)), (inputs, memory)

    def scan(self, u: Tensor, context: Context, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (b t d_inner) -> y (b t d_inner) before the gate, and the state after the last token."""
        low, B, C = self.x_proj(u).split([self.rank, self.size, self.size], dim=-1)
        wide = torch.promote_types(u.dtype, torch.float32)
        delta = F.softplus(self.dt_proj(low).to(wide) + self.dt_bias.to(wide))
        delta = delta + self.offset if self.offset else delta
        if context.mask is not None:
            delta = delta * context.mask[..., None]
        A, skip, segments = -torch.exp(self.A_log.to(wide)), self.D.to(wide), context.segments
        y, memory = selective_scan(u, delta, A, B, C, state=memory, segments=segments)
        if not context.causal:
            u_back, delta_back, B, C = (v.flip(1) for v in (u, delta, B, C))
            segments = None if segments is None else (segments[:, -1:] - segments).flip(1)
            back, _ = selective_scan(u_back, delta_back, A, B, C, segments=segments)
            y, skip = y + back.flip(1), 2 * skip
        return torch.addcmul(y, u, skip.to(y.dtype)), memory
