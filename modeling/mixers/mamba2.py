"""The state-space layer of Mamba-2: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060).

    z, (u, B, C), d = x W_in                (u, B, C) through the short convolution and silu
    Delta_t = softplus(d + dt_bias),   A = -exp(A_log)                one of each per head
    S_t = exp(Delta_t A) S_(t-1) + B_t^T (Delta_t u_t)                eq. 16, B by Euler's rule
    y_t = C_t S_t + D u_t
    out = rms(y * silu(z)) W_out                                      section 7.2

B and C belong to a group of heads. Where `scan_size` is less than `inner_size`, the other channels are a gated
feed-forward layer beside y: out = [silu(z_0) * u_0, rms(..)] W_out.

State: the last k - 1 inputs of the convolution (b k-1 d), d = scan_size + 2 groups n, and S (b h n p), in float32.
Time: O(t) in blocks, O(1) for a token. A_log, D and dt_bias are kept in float32, and out of weight decay.
In both directions: a centred convolution, and the scan of the tokens plus that of the tokens in reverse with the same
weights; D u counts in each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activation import activation
from ..ops.ssd import ssd
from ..state import Context, State
from .gated_norm import GatedRMSNorm
from .short_convolution import ShortConvolution
from .step_size import draw_step_bias, fill


class DualSSM(nn.Module):
    """x (b t d) -> (b t d), for a NoriaMamba2Config."""

    _no_weight_decay = ("A_log", "D", "dt_bias")

    def __init__(self, config) -> None:
        super().__init__()
        width, inner, scanned = config.hidden_size, config.inner_size, config.scan_size
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.groups, self.size = config.num_groups, config.state_size
        self.steps = config.time_step_min, config.time_step_max, config.time_step_floor
        self.decays, self.limit = (config.decay_min, config.decay_max), config.time_step_limit
        self.output_scale = config.num_hidden_layers**-0.5 if config.rescale_prenorm_residual else 1.0
        mixed = scanned + 2 * self.groups * self.size
        self.parts = [inner - scanned, inner - scanned, scanned, mixed, self.heads]
        self.in_proj = nn.Linear(width, sum(self.parts), bias=config.use_bias)
        self.conv = ShortConvolution(mixed, config.conv_kernel, config.use_conv_bias, activation(config.hidden_act))
        self.norm = None
        if config.gate_norm:
            self.norm = GatedRMSNorm(scanned, self.groups, config.norm_eps, config.norm_before_gate)
        self.out_proj = nn.Linear(inner, width, bias=config.use_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(scanned if config.skip_per_channel else self.heads))

    def initialize(self, std: float) -> None:
        """Decay rates drawn evenly, step sizes as they were configured; branches that do not swell the residual."""
        least, most = self.decays
        drawn = torch.rand(self.heads, device=self.A_log.device, dtype=torch.float64)
        fill(self.A_log, (least + drawn * (most - least)).log())
        nn.init.ones_(self.D)
        draw_step_bias(self.dt_bias, *self.steps)
        nn.init.normal_(self.out_proj.weight, std=std * self.output_scale)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch, self.heads, self.size, self.head_dim, dtype=wide, device=device)
        return self.conv.initial_state(batch, dtype, device), memory

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        inputs, memory = (None, None) if state is None else state
        z0, x0, z, mixed, step = self.in_proj(x).split(self.parts, dim=-1)
        mixed, inputs = self.conv(mixed, context, inputs)
        y, memory = self.scan(mixed, step, context, memory)
        y = y * F.silu(z) if self.norm is None else self.norm(y, z)
        if self.parts[0]:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return self.out_proj(y), (inputs, memory)

    def scan(self, mixed: Tensor, step: Tensor, context: Context, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """u, B and C side by side (b t d), step (b t h) -> y (b t scan_size), and the state after the last token."""
        shared = self.groups * self.size
        u, B, C = mixed.split([mixed.shape[-1] - 2 * shared, shared, shared], dim=-1)
        u = u.unflatten(-1, (self.heads, self.head_dim))
        B, C = (part.unflatten(-1, (self.groups, self.size)) for part in (B, C))
        delta = self.step_sizes(step, context)
        decay = -torch.exp(self.A_log.to(delta.dtype)) * delta
        skip, segments = self.D.to(delta.dtype).view(self.heads, -1), context.segments
        y, memory = ssd(u, delta, decay, B, C, state=memory, segments=segments)
        if not context.causal:
            backward = (part.flip(1) for part in (u, delta, decay, B, C))
            segments = None if segments is None else (segments[:, -1:] - segments).flip(1)
            y, skip = y + ssd(*backward, segments=segments)[0].flip(1), 2 * skip
        # In place: y is nobody else's, and fresh memory is slower than the sum.
        return y.addcmul_(u, skip.to(y.dtype)).flatten(2), memory

    def step_sizes(self, step: Tensor, context: Context) -> Tensor:
        """Delta (b t h) in float32, or float64 where step is; 0 at padding."""
        wide = torch.promote_types(step.dtype, torch.float32)
        delta = F.softplus(step.to(wide) + self.dt_bias.to(wide))
        if self.limit is not None:
            delta = delta.clamp(*self.limit)
        return delta if context.mask is None else delta * context.mask[..., None]
