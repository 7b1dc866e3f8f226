"""The time mix of RWKV-4: Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era (arXiv:2305.13048).

    r, k, v = W_r lerp(x', x, mu_r), W_k lerp(x', x, mu_k), W_v lerp(x', x, mu_v),   x' the token before      eq. 11-13
    wkv_t = (sum_(i<t) e^(k_i - (t-1-i) w) v_i + e^(u + k_t) v_t) / (the same without v),   w = e^time_decay     eq. 16
    out = W_o (sigmoid(r) * wkv)                                                                                 eq. 17

State: the last token (b d), and numerator, denominator and running maximum (b a) of the sums, all in float32.
Time: O(t), O(1) for a token.
"""

import math

import torch
from torch import Tensor, nn

from ..ops.token_shift import token_shift
from ..ops.wkv import empty_state, wkv
from ..state import Context, State
from .rwkv_init import channel_ramp, set_values


class TimeMix4(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, attention_hidden_size and num_hidden_layers."""

    _no_weight_decay = ("time_decay", "time_first", "mix_r", "mix_k", "mix_v")

    def __init__(self, config, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.attention_hidden_size
        self.depth = layer / max(config.num_hidden_layers, 1)
        self.height = layer / max(config.num_hidden_layers - 1, 1)
        self.mix_r, self.mix_k, self.mix_v = (nn.Parameter(torch.empty(width)) for _ in range(3))
        self.time_decay = nn.Parameter(torch.empty(inner))
        self.time_first = nn.Parameter(torch.empty(inner))
        self.r_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def initialize(self, std: float) -> None:
        ramp = channel_ramp(len(self.mix_k))
        set_values(self.mix_k, ramp ** (1 - self.depth))
        set_values(self.mix_v, ramp ** (1 - self.depth) + 0.3 * self.height)
        set_values(self.mix_r, ramp ** (0.5 * (1 - self.depth)))
        channels = torch.arange(len(self.time_decay))
        speed = channels / max(len(channels) - 1, 1)
        set_values(self.time_decay, 8 * speed ** (0.7 + 1.3 * self.height) - 5)
        set_values(self.time_first, math.log(0.3) + ((channels + 1) % 3 - 1) * 0.5)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        last = torch.zeros(batch, len(self.mix_k), dtype=wide, device=device)
        return last, *empty_state(batch, len(self.time_decay), wide, device)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        last, sums = (None, None) if state is None else (state[0], state[1:])
        before, last = token_shift(x, last, context.mask, context.segments)
        r, k, v = (
            proj(torch.lerp(before, x, mix.to(x.dtype)))
            for proj, mix in ((self.r_proj, self.mix_r), (self.k_proj, self.mix_k), (self.v_proj, self.mix_v))
        )
        y, sums = wkv(k, v, self.time_decay, self.time_first, state=sums, mask=context.mask, segments=context.segments)
        return self.o_proj(torch.sigmoid(r) * y), (last, *sums)
