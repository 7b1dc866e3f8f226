"""Softmax attention with positions: Vaswani et al. 2017 (arXiv:1706.03762), Su et al. 2021 (arXiv:2104.09864).

    q, k, v = x W_q, x W_k, x W_v
    y_i = sum_j softmax_j(rotate(q_i) rotate(k_j)^T / sqrt(d) + bias_ij) v_j,   out = y W_o

What the position encoding does to q, k, v, scores and outputs is its own: position/base.py.

State: every key and value seen, (b h s d) each; it grows and lies in transformers' own cache layers.
"""

from collections.abc import Callable

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
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The definition: query (b h t d), key and value (b h s d), mask (b 1 t s) boolean or additive.

    Returns (b t h d) and the weights (b h t s). A row that sees nothing gives zeros.
    """
    scores = query @ key.transpose(2, 3) * scaling
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

    def __init__(self, scaling: float, dropout: float) -> None:
        super().__init__()
        self.scaling, self.dropout = scaling, float(dropout)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        context: Context,
        attention: Callable | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs (b t h d) and, where `attention` (by default the context's) tells them, weights (b h t s)."""
        visibility = context.visibility if bias is None else biased_visibility(bias, q, k, context)
        return (attention or context.attention)(
            self,
            q,
            k,
            v,
            visibility,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            is_causal=context.causal and bias is None,
        )


def biased_visibility(bias: Tensor, q: Tensor, k: Tensor, context: Context) -> Tensor:
    """The additive mask (b h t s) that holds `bias` where a key is seen, and the least finite number elsewhere."""
    visible = context.visibility
    if visible is None and context.causal and q.shape[2] > 1:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        visible = visible.tril(k.shape[2] - q.shape[2])
    bias = bias.to(q.dtype)
    if visible is None:
        return bias
    if visible.dtype == torch.bool:
        return bias.masked_fill(~visible, torch.finfo(q.dtype).min)
    return (bias + visible).clamp(min=torch.finfo(q.dtype).min)


class SoftmaxAttention(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, num_attention_heads, head_dim, attention_dropout.

    `queries` (b t d), where given, ask in x's place; keys and values always come from x.
    """

    def __init__(self, config, position: PositionEncoding, bias: bool = True) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        inner = self.heads * config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=bias) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=bias)
        self.core = ScoredValues((position.terms * config.head_dim) ** -0.5, config.attention_dropout)
        self.position = position

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        return None

    def forward(
        self, x: Tensor, context: Context, state: State = None, queries: Tensor | None = None
    ) -> tuple[Tensor, State]:
        q = split_heads(self.q_proj(x if queries is None else queries), self.heads)  # (b h t d)
        k, v = split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)
        q, k = self.position.rotate(q, k, context)
        v = self.position.turn(v, context)
        if state is not None:
            k, v = state.update(k, v)
        q, k = self.position.scale(q, k, context)
        bias = self.position.bias(q, k, context)
        if self.position.reads:
            y, weights = self.core(q, k, v, bias, context, eager_attention)
            y = y + self.position.read(weights, context)
        else:
            y, _ = self.core(q, k, v, bias, context)
        return self.o_proj(y.flatten(2)), state
