"""The time mix of RWKV-5.2: Peng et al. 2024, Eagle and Finch (arXiv:2404.05892).

    r, k, v, g = W_r lerp(x', x, mu_r), ... likewise k, v and g,   x' the token before
    y_t = r_t (S_(t-1) + diag(u) k_t^T v_t),   S_t = diag(w) S_(t-1) + k_t^T v_t,   w = exp(-exp(time_decay))
    out = W_o (silu(g) * GroupNorm(y)),   one group a head

u is `time_first`, time_faaaa of the published files.
State: the last token (b d), and S (b h k v), both float32 at least.  Time: O(t) in chunks, O(1) for a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.bonus_recurrence import bonus_recurrence
from ..ops.token_shift import token_shift
from ..state import Context, State
from .heads import merge_heads, split_heads
from .rwkv_init import channel_ramp, set_values


class HeadNorm(nn.GroupNorm):
    """A layer norm of each head: (b t a) -> (b t a). Published models scale y by 1/8 and have an epsilon of 1e-5."""

    def __init__(self, config) -> None:
        super().__init__(config.num_attention_heads, config.attention_hidden_size, eps=64 * config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


def decay_ramp(width: int, height: float) -> Tensor:
    """-6 to -1 over the channels, the more bent the higher the layer (height 0 to 1)."""
    return 5 * (torch.arange(width) / max(width - 1, 1)) ** (0.7 + 1.3 * height) - 6


def bonus_ramp(width: int, height: float) -> Tensor:
    """The first values of u: a slope that grows with the layer's height, and a zigzag."""
    channels = torch.arange(width)
    return height * (1 - channels / max(width - 1, 1)) + ((channels + 1) % 3 - 1) * 0.1


class HeadTimeMix(nn.Module):
    """What the time mixes with a matrix state share, for a config with hidden_size, attention_hidden_size,
    num_attention_heads, num_hidden_layers and norm_eps."""

    def __init__(self, config, layer: int) -> None:
        super().__init__()
        self.width, self.inner = config.hidden_size, config.attention_hidden_size
        self.heads, self.head_size = config.num_attention_heads, config.head_size
        self.depth = layer / max(config.num_hidden_layers, 1)
        self.height = layer / max(config.num_hidden_layers - 1, 1)
        self.r_proj = nn.Linear(self.width, self.inner, bias=False)
        self.k_proj = nn.Linear(self.width, self.inner, bias=False)
        self.v_proj = nn.Linear(self.width, self.inner, bias=False)
        self.o_proj = nn.Linear(self.inner, self.width, bias=False)
        self.head_norm = HeadNorm(config)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch, self.heads, self.head_size, self.head_size, dtype=wide, device=device)
        return torch.zeros(batch, self.width, dtype=wide, device=device), memory


class TimeMix5(HeadTimeMix):
    """x (b t d) -> (b t d)."""

    _no_weight_decay = ("mix_r", "mix_k", "mix_v", "mix_g", "time_decay", "time_first")

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.mix_r, self.mix_k, self.mix_v, self.mix_g = (nn.Parameter(torch.empty(self.width)) for _ in range(4))
        self.time_decay = nn.Parameter(torch.empty(self.heads, self.head_size))
        self.time_first = nn.Parameter(torch.empty(self.heads, self.head_size))
        self.g_proj = nn.Linear(self.width, self.inner, bias=False)

    def initialize(self, std: float) -> None:
        ramp = channel_ramp(self.width)
        set_values(self.mix_k, ramp ** (1 - self.depth))
        set_values(self.mix_v, ramp ** (1 - self.depth) + 0.3 * self.height)
        for mix in (self.mix_r, self.mix_g):
            set_values(mix, ramp ** (0.5 * (1 - self.depth)))
        set_values(self.time_decay, decay_ramp(self.inner, self.height).view_as(self.time_decay))
        set_values(self.time_first, bonus_ramp(self.inner, self.height).view_as(self.time_first))

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        last, memory = (None, None) if state is None else state
        before, last = token_shift(x, last, context.mask, context.segments)
        r, k, v, g = (
            proj(torch.lerp(before, x, mix.to(x.dtype)))
            for proj, mix in (
                (self.r_proj, self.mix_r),
                (self.k_proj, self.mix_k),
                (self.v_proj, self.mix_v),
                (self.g_proj, self.mix_g),
            )
        )
        r, k, v = (split_heads(part, self.heads) for part in (r, k, v))
        decay = -self.time_decay.exp()
        if context.mask is not None:
            real = context.mask[:, None, :, None]
            k, decay = k * real, (decay[:, None] * real)
        y, memory = bonus_recurrence(r, k, v, decay, self.time_first, state=memory, segments=context.segments)
        return self.o_proj(F.silu(g) * self.head_norm(merge_heads(y).to(x.dtype))), (last, memory)
