"""Softmax attention with positions: Vaswani et al. 2017 (arXiv:1706.03762), Su et al. 2021 (arXiv:2104.09864).

    q, k, v = x W_q, x W_k, x W_v
    y_i = sum_j softmax_j(rotate(q_i) rotate(k_j)^T / sqrt(d) + bias_ij) v_j,   out = y W_o

State: every key and value seen, (b h s d) each; it grows and lies in transformers' own cache layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..position.base import PositionEncoding
from ..state import Context, State
from .heads import split_heads


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The definition: query (b h t d), key and value (b h s d), mask (b 1 t s) boolean or additive.

    Returns (b t h d) and the weights (b h t s). A row that sees nothing gives zeros.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ScoredValues(nn.Module):
    """The core, a module of its own so that its weights can be recorded as `attentions`."""

    num_key_value_groups = 1

    def __init__(self, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.scaling, self.dropout = head_dim**-0.5, float(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, context: Context) -> tuple:
        return context.attention(
            self,
            q,
            k,
            v,
            context.visibility,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            is_causal=context.causal,
            position_bias=bias,
        )


class SoftmaxAttention(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, num_attention_heads, head_dim, attention_dropout."""

    bias = True

    def __init__(self, config, position: PositionEncoding) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        inner = self.heads * config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=self.bias) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=self.bias)
        self.core = ScoredValues(config.head_dim, config.attention_dropout)
        self.position = position

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        return None

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (b h t d)
        q, k = self.position.rotate(q, k, context)
        if state is not None:
            k, v = state.update(k, v)
        y, _ = self.core(q, k, v, self.position.bias(q, k, context), context)
        return self.o_proj(y.flatten(2)), state
