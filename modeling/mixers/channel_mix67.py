"""The channel mixes of RWKV-6 and RWKV-7, whose mu is the share of the token before (x'), not of the token itself.

version 6  y = sigmoid(W_r lerp(x, x', mu_r)) * W_v relu(W_k lerp(x, x', mu_k))^2       arXiv:2404.05892
version 7  y = W_v relu(W_k lerp(x, x', mu_k))^2                                        arXiv:2503.14456

State: the last token (b d).
"""

import torch
from torch import Tensor, nn

from ..ops.token_shift import token_shift
from ..state import Context, State
from .rwkv_init import channel_ramp, set_values


class ChannelMix7(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, intermediate_size and num_hidden_layers."""

    _no_weight_decay: tuple[str, ...] = ("mix_k",)
    power = 4

    def __init__(self, config, layer: int) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.depth = layer / max(config.num_hidden_layers, 1)
        self.mix_k = nn.Parameter(torch.empty(self.width))
        self.k_proj = nn.Linear(self.width, config.intermediate_size, bias=False)
        self.v_proj = nn.Linear(config.intermediate_size, self.width, bias=False)

    def initialize(self, std: float) -> None:
        set_values(self.mix_k, 1 - channel_ramp(self.width) ** ((1 - self.depth) ** self.power))

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        return (torch.zeros(batch, self.width, dtype=torch.promote_types(dtype, torch.float32), device=device),)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        before, last = token_shift(x, None if state is None else state[0], context.mask, context.segments)
        return self.mix(x, before), (last,)

    def mix(self, x: Tensor, before: Tensor) -> Tensor:
        return self.v_proj(torch.relu(self.k_proj(torch.lerp(x, before, self.mix_k.to(x.dtype)))).square())


class ChannelMix6(ChannelMix7):
    """x (b t d) -> (b t d)."""

    _no_weight_decay = ("mix_k", "mix_r")
    power = 1

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.mix_r = nn.Parameter(torch.empty(self.width))
        self.r_proj = nn.Linear(self.width, self.width, bias=False)

    def initialize(self, std: float) -> None:
        super().initialize(std)
        set_values(self.mix_r, 1 - channel_ramp(self.width) ** (1 - self.depth))

    def mix(self, x: Tensor, before: Tensor) -> Tensor:
        return torch.sigmoid(self.r_proj(torch.lerp(x, before, self.mix_r.to(x.dtype)))) * super().mix(x, before)
