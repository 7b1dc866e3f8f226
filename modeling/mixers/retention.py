"""Multi-scale retention: Sun et al. 2023, Retentive Network (arXiv:2307.08621).

    q, k, v = x W_q, x W_k, x W_v,   q and k rotated by position,  k scaled by d_k^(-1/2)      eq. 3
    S_t = gamma_h S_(t-1) + k_t^T v_t,   y_t = q_t S_t,   gamma_h = 1 - 2^(-5-h)               eq. 6
    y_t / sqrt(1 + gamma_h + ... + gamma_h^(t-1)), then RMS norm of each head                  section 2.3
    out = (act(x W_g) * y) W_o                                                                 eq. 8

State: S (b h dk dv) in float32 and the number n (b) of tokens seen.  Time: O(t) in chunks, O(1) for a token.
As in torchscale, theta runs from 1 to 1/base in equal ratios. The paper's further division of each row by the sum of
its scores is undone by the norm, but for its epsilon, and cannot be had from a state: it is left out.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activation import activation
from ..ops.matrix_recurrence import matrix_recurrence
from ..position.rotary import Rotary
from ..state import Context, State, count_tokens
from .heads import merge_heads, split_heads


class RetentionRotary(Rotary):
    """theta_i = base^(-i/(d/2-1)), or the given frequencies (d/2)."""

    def __init__(self, dim: int, base: float, given: Sequence[float] | None) -> None:
        super().__init__(dim, base, endpoint=True)
        self.given = given

    def frequencies(self, device: torch.device) -> Tensor:
        usual = super().frequencies(device)
        return usual if self.given is None else torch.tensor(self.given, device=device, dtype=usual.dtype)


class Retention(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, num_attention_heads, key_size and value_size."""

    def __init__(self, config) -> None:
        super().__init__()
        width, self.heads, self.eps = config.hidden_size, config.num_attention_heads, config.norm_eps
        self.key_dim, self.value_dim = config.key_size // self.heads, config.value_size // self.heads
        self.q_proj = nn.Linear(width, config.key_size, bias=False)
        self.k_proj = nn.Linear(width, config.key_size, bias=False)
        self.v_proj = nn.Linear(width, config.value_size, bias=False)
        self.g_proj = nn.Linear(width, config.value_size, bias=False)
        self.o_proj = nn.Linear(config.value_size, width, bias=False)
        self.act = activation(config.gate_act)
        self.position = RetentionRotary(self.key_dim, config.rotary_base, config.rotary_frequencies)
        self.stored_decay = config.log_decay

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch, self.heads, self.key_dim, self.value_dim, dtype=wide, device=device)
        return memory, torch.zeros(batch, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        memory, count = (None, None) if state is None else state
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (b h t d)
        q, k = self.position.rotate(q, k * self.key_dim**-0.5, context)
        decay = context.once(("log decay", self.heads), lambda: self.log_decay(x.device))
        y, memory = matrix_recurrence(
            *self.hide_padding(q, k, v, decay, context), state=memory, segments=context.segments
        )
        seen, scale = context.once(("row scale", self.heads), lambda: self.row_scale(decay, context, count, x.shape))
        y = y * scale.to(y.dtype)
        y = merge_heads(F.rms_norm(y, (self.value_dim,), eps=self.eps)).to(x.dtype)
        return self.o_proj(self.act(self.g_proj(x)) * y), (memory, seen[:, -1].clone())

    def log_decay(self, device: torch.device) -> Tensor:
        """log gamma_h (h), float32."""
        decay = self.stored_decay or [math.log1p(-(2.0 ** (-5 - head))) for head in range(self.heads)]
        return torch.tensor(decay, device=device, dtype=torch.float32)

    def hide_padding(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, context: Context) -> tuple[Tensor, ...]:
        """At padding nothing is stored and nothing forgotten; without padding the decay is one number per head."""
        if context.mask is None:
            return q, k, v, decay
        real = context.mask[:, None, :]
        return q, k * real[..., None], v, decay[:, None] * real

    def row_scale(
        self, decay: Tensor, context: Context, before: Tensor | None, shape: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """n (b t), the tokens seen after `before` (b), and (1 + gamma + ... + gamma^(n-1))^(-1/2) (b h t 1).

        Every layer has seen the same tokens, so that the first computes both for all.
        """
        seen = count_tokens(context, before, shape[0], shape[1])
        decay, count = decay[:, None], seen.clamp(min=1)[:, None].to(decay.dtype)  # (h 1), (b 1 t)
        total = torch.where(decay == 0, count, torch.expm1(count * decay) / torch.expm1(decay))
        return seen, torch.rsqrt(total)[..., None]
