"""The channel mix of RWKV-4 and 5: a feed-forward layer that also sees the token before (x' below).

    y = sigmoid(W_r lerp(x', x, mu_r)) * W_v relu(W_k lerp(x', x, mu_k))^2     arXiv:2305.13048, eq. 18 to 20

State: the last token (b d).
"""

import torch
from torch import Tensor, nn

from ..ops.token_shift import token_shift
from ..state import Context, State
from .rwkv_init import channel_ramp, set_values


class SquaredReluChannelMix(nn.Module):
    """x (b t d) -> (b t d), state as `RWKVBlock` wants it."""

    _no_weight_decay = ("mix_k", "mix_r")

    def __init__(self, config, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.depth = layer / max(config.num_hidden_layers, 1)
        self.mix_k = nn.Parameter(torch.empty(width))
        self.mix_r = nn.Parameter(torch.empty(width))
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.r_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(inner, width, bias=False)

    def initialize(self, std: float) -> None:
        ramp = channel_ramp(len(self.mix_k)) ** (1 - self.depth)
        set_values(self.mix_k, ramp)
        set_values(self.mix_r, ramp)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        return (torch.zeros(batch, len(self.mix_k), dtype=wide, device=device),)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        before, last = token_shift(x, None if state is None else state[0], context.mask, context.segments)
        k = torch.relu(self.k_proj(torch.lerp(before, x, self.mix_k.to(x.dtype)))).square()
        r = torch.sigmoid(self.r_proj(torch.lerp(before, x, self.mix_r.to(x.dtype))))
        return r * self.v_proj(k), (last,)
