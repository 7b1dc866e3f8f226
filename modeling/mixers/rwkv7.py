r"""The time mix of RWKV-7: Peng et al. 2025, Goose (arXiv:2503.14456).

    x_i = lerp(x, x', mu_i)   for i = r, w, k, v, a, g;   r, k, v = W_r x_r, W_k x_k, W_v x_v,   x' the token before
    w = exp(-e^(-1/2) sigmoid(time_decay + tanh(x_w A_w) B_w)),   a = sigmoid(rate_bias + x_a A_a B_a)
    v = lerp(v, v of the first layer, sigmoid(value_bias + x_v A_v B_v)),   but for the first layer
    kappa = k * removal_scale, of length 1 in each head;   k~ = k (1 + (a - 1) rate_scale)
    S_t = diag(w_t) S_(t-1) - (a_t kappa_t)^T (kappa_t S_(t-1)) + k~_t^T v_t,   y_t = r_t S_t
    out = W_o ((GroupNorm(y) + (r . (bonus * k~)) v) * (sigmoid(x_g A_g) B_g)),   one group and one product a head

In the published files time_decay is w0, rate_bias a0, value_bias v0, removal_scale k_k, rate_scale k_a, bonus r_k.
State: the last token (b d), and S (b h k v), the paper's transposed, both float32 at least.
Time: O(t) in chunks, O(1) for a token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.delta_rule import delta_rule
from ..ops.token_shift import token_shift
from ..state import Context, State
from .heads import merge_heads, split_heads
from .rwkv5 import HeadTimeMix
from .rwkv_init import channel_ramp, set_values


class LowRank(nn.Module):
    """act(x A) B: (b t d) -> (b t a)."""

    def __init__(self, width: int, rank: int, out: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=False)

    def forward(self, x: Tensor, act=None) -> Tensor:
        x = self.down(x)
        return self.up(x if act is None else act(x))


class TimeMix7(HeadTimeMix):
    """x (b t d), the first layer's values (b t a) or None in the first layer -> (b t d), state, those values.

    For a config with decay_rank, rate_rank, value_rank and gate_rank beside what `HeadTimeMix` asks for.
    """

    _no_weight_decay = (
        *(f"mix_{stream}" for stream in "rwkvag"),
        *("time_decay", "rate_bias", "value_bias", "removal_scale", "rate_scale", "bonus"),
    )

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.mix_r, self.mix_w, self.mix_k = (nn.Parameter(torch.empty(self.width)) for _ in range(3))
        self.mix_v, self.mix_a, self.mix_g = (nn.Parameter(torch.empty(self.width)) for _ in range(3))
        self.time_decay, self.rate_bias = (nn.Parameter(torch.empty(self.inner)) for _ in range(2))
        self.removal_scale, self.rate_scale = (nn.Parameter(torch.empty(self.inner)) for _ in range(2))
        self.bonus = nn.Parameter(torch.empty(self.heads, self.head_size))
        self.decay_lora = LowRank(self.width, config.decay_rank, self.inner)
        self.rate_lora = LowRank(self.width, config.rate_rank, self.inner)
        self.gate_lora = LowRank(self.width, config.gate_rank, self.inner)
        self.register_parameter("value_bias", None)
        self.value_lora = None
        if layer:
            self.value_bias = nn.Parameter(torch.empty(self.inner))
            self.value_lora = LowRank(self.width, config.value_rank, self.inner)

    def initialize(self, std: float) -> None:
        ramp, rest = channel_ramp(self.width), 1 - self.depth
        for mix, power in ((self.mix_r, 0.2), (self.mix_g, 0.2), (self.mix_w, 0.9), (self.mix_a, 0.9)):
            set_values(mix, 1 - ramp ** (power * rest))
        for mix in (self.mix_k, self.mix_v):
            set_values(mix, 1 - ramp ** (0.7 * rest))
        place = torch.arange(self.inner) / max(self.inner - 1, 1)
        in_head = torch.arange(self.inner) % self.head_size / max(self.head_size - 1, 1) * 2 - 1
        zigzag, slope = in_head * in_head.abs(), place - 0.5
        set_values(self.time_decay, 6 * place ** (1 + self.height**0.3) - 5.5 + 2.5 * zigzag)
        set_values(self.rate_bias, 0.3 * zigzag + 0.4 * slope - 0.19)
        set_values(self.removal_scale, 0.71 - 0.1 * slope)
        set_values(self.rate_scale, torch.full((1,), 1.02))
        set_values(self.bonus, torch.full((1,), -0.04))
        if self.value_bias is not None:
            set_values(self.value_bias, 0.73 - 0.4 * slope)

    def forward(
        self, x: Tensor, context: Context, state: State = None, first: Tensor | None = None
    ) -> tuple[Tensor, State, Tensor]:
        last, memory = (None, None) if state is None else state
        before, last = token_shift(x, last, context.mask, context.segments)
        mixes = (self.mix_r, self.mix_w, self.mix_k, self.mix_v, self.mix_a, self.mix_g)
        xr, xw, xk, xv, xa, xg = (torch.lerp(x, before, mix.to(x.dtype)) for mix in mixes)
        r, k = self.r_proj(xr), self.k_proj(xk)
        v: Tensor = self.v_proj(xv)
        if self.value_bias is None or self.value_lora is None or first is None:
            first = v
        else:
            share = torch.sigmoid(self.value_bias.to(x.dtype) + self.value_lora(xv))
            v = torch.lerp(v, first.to(v.dtype), share.to(v.dtype))
        removal = F.normalize(split_heads(k * self.removal_scale.to(x.dtype), self.heads), dim=-1)
        rate = torch.sigmoid(self.rate_bias.to(x.dtype) + self.rate_lora(xa))
        k = k * (1 + (rate - 1) * self.rate_scale.to(x.dtype))
        decay = -math.exp(-0.5) * torch.sigmoid(self.time_decay + self.decay_lora(xw, torch.tanh))
        y, memory = self.remember(r, k, v, removal, rate, decay, memory, context)
        y = y + self.own(r, k, v)
        return self.o_proj(y * self.gate_lora(xg, torch.sigmoid)), (last, memory), first

    def remember(
        self,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        removal: Tensor,
        rate: Tensor,
        decay: Tensor,
        memory: Tensor | None,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        """What the state gives, normed (b t a), and the state; padding neither writes, removes nor decays."""
        r, k, heads, rate, decay = (split_heads(part, self.heads) for part in (r, k, v, rate, decay))
        written = removal * rate
        if context.mask is not None:
            real = context.mask[:, None, :, None]
            k, written, decay = k * real, written * real, decay * real
        y, memory = delta_rule(r, k, heads, -removal, written, decay, state=memory, segments=context.segments)
        return self.head_norm(merge_heads(y).to(v.dtype)), memory

    def own(self, r: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What a token says of itself (b t a): (r . (bonus * k)) v in each head."""
        weight = (r * k * self.bonus.flatten().to(r.dtype)).unflatten(-1, self.bonus.shape).sum(-1, keepdim=True)
        return (weight * v.unflatten(-1, self.bonus.shape)).flatten(-2)
