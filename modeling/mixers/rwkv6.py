"""The time mix of RWKV-6: Peng et al. 2024, Eagle and Finch (arXiv:2404.05892).

    z = tanh(lerp(x, x', mu_x) A),   x_i = lerp(x, x', mu_i + z_i B_i)   for i = w, k, v, r, g
    r, k, v, g = W_r x_r, W_k x_k, W_v x_v, W_g x_g,   w_t = exp(-exp(time_decay + tanh(x_w C) D))
    y_t = r_t (S_(t-1) + diag(u) k_t^T v_t),   S_t = diag(w_t) S_(t-1) + k_t^T v_t
    out = W_o (silu(g) * GroupNorm(y)),   one group a head

u is `time_first`, time_faaaa of the published files; x' is the token before.
State: the last token (b d), and S (b h k v), both float32 at least.  Time: O(t) in chunks, O(1) for a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.bonus_recurrence import bonus_recurrence
from ..ops.token_shift import token_shift
from ..state import Context, State
from .heads import merge_heads, split_heads
from .rwkv5 import HeadTimeMix, bonus_ramp, decay_ramp
from .rwkv_init import channel_ramp, set_values

STREAMS = "wkvrg"


class TimeMix6(HeadTimeMix):
    """x (b t d) -> (b t d), for a config with mix_rank and decay_rank beside what `HeadTimeMix` asks for."""

    _no_weight_decay = ("mix_x", "mix_w", "mix_k", "mix_v", "mix_r", "mix_g", "time_decay", "time_first")

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.mix_x, self.mix_w, self.mix_k = (nn.Parameter(torch.empty(self.width)) for _ in range(3))
        self.mix_v, self.mix_r, self.mix_g = (nn.Parameter(torch.empty(self.width)) for _ in range(3))
        self.mix_down = nn.Linear(self.width, len(STREAMS) * config.mix_rank, bias=False)
        self.mix_up = nn.Parameter(torch.empty(len(STREAMS), config.mix_rank, self.width))
        self.time_decay = nn.Parameter(torch.empty(self.inner))
        self.time_first = nn.Parameter(torch.empty(self.heads, self.head_size))
        self.decay_down = nn.Linear(self.width, config.decay_rank, bias=False)
        self.decay_up = nn.Linear(config.decay_rank, self.inner, bias=False)
        self.g_proj = nn.Linear(self.width, self.inner, bias=False)

    def initialize(self, std: float) -> None:
        ramp = channel_ramp(self.width)
        for mix in (self.mix_x, self.mix_w, self.mix_k):
            set_values(mix, 1 - ramp ** (1 - self.depth))
        set_values(self.mix_v, 1 - ramp ** (1 - self.depth) - 0.3 * self.height)
        for mix in (self.mix_r, self.mix_g):
            set_values(mix, 1 - ramp ** (0.5 * (1 - self.depth)))
        nn.init.uniform_(self.mix_up, -0.01, 0.01)
        set_values(self.time_decay, decay_ramp(self.inner, self.height))
        set_values(self.time_first, bonus_ramp(self.inner, self.height).view_as(self.time_first))

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        last, memory = (None, None) if state is None else state
        before, last = token_shift(x, last, context.mask, context.segments)
        w, k, v, r, g = self.mixtures(x, before)
        r, k, v = (
            split_heads(proj(part), self.heads)
            for proj, part in ((self.r_proj, r), (self.k_proj, k), (self.v_proj, v))
        )
        w = self.time_decay + self.decay_up(torch.tanh(self.decay_down(w)))
        decay = split_heads(-w.exp(), self.heads)
        if context.mask is not None:
            real = context.mask[:, None, :, None]
            k, decay = k * real, decay * real
        y, memory = bonus_recurrence(r, k, v, decay, self.time_first, state=memory, segments=context.segments)
        return self.o_proj(F.silu(self.g_proj(g)) * self.head_norm(merge_heads(y).to(x.dtype))), (last, memory)

    def mixtures(self, x: Tensor, before: Tensor) -> list[Tensor]:
        """Each token (b t d) with its share of the one before, for w, k, v, r and g."""
        z = torch.tanh(self.mix_down(torch.lerp(x, before, self.mix_x.to(x.dtype))))
        z = z.unflatten(-1, self.mix_up.shape[:2])  # (b t 5 rank)
        difference = before - x
        mixes = (self.mix_w, self.mix_k, self.mix_v, self.mix_r, self.mix_g)
        return [
            torch.addcmul(x, difference, z[..., i, :] @ self.mix_up[i] + mix.to(x.dtype))
            for i, mix in enumerate(mixes)
        ]
