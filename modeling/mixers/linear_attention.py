"""Linear attention: Katharopoulos et al. 2020, Transformers are RNNs (arXiv:2006.16236).

    S_t = S_(t-1) + phi(k_t)^T v_t,   z_t = z_(t-1) + phi(k_t)                eq. 18, 19
    y_t = phi(q_t) S_t / (phi(q_t) z_t^T + eps),   out = y W_o                eq. 20
    bidirectional: S and z are sums over the whole sequence                   eq. 6

    rotary "both":       phi(q), phi(k) rotated in S and in z
    rotary "numerator":  rotated in S alone, so that the denominator stays positive  (arXiv:2104.09864, eq. 19)
    a constant feature is appended after the rotation:  1 + cos(q R k) stays a probability

State: S with z as its last column, (b h dk dv+1) in float32; S and z apart where they differ.
"""

import torch
from torch import Tensor, nn

from ..ops.matrix_recurrence import matrix_recurrence
from ..ops.segment_sums import bidirectional_product
from ..position.base import PositionEncoding
from ..state import Context, State
from .feature_maps import feature_map
from .heads import merge_heads, split_heads


def append_one(x: Tensor) -> Tensor:
    return torch.cat((x, torch.ones_like(x[..., :1])), dim=-1)


class LinearMixer(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, num_attention_heads, head_dim, feature_map and rotary.

    Raises ValueError for a position encoding that works on scores, which linear attention never computes.
    """

    def __init__(self, config, position: PositionEncoding, bias: bool = True) -> None:
        super().__init__()
        if position.sees_keys:
            raise ValueError(
                f"linear attention computes no scores, so its positions cannot be {type(position).__name__}: choose a "
                "rotary encoding, or one that is added to the embeddings."
            )
        width, self.heads, self.head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        self.value_dim = config.value_head_dim
        keys, values = self.heads * self.head_dim, self.heads * self.value_dim
        self.q_proj, self.k_proj = (nn.Linear(width, keys, bias=bias) for _ in range(2))
        self.v_proj = nn.Linear(width, values, bias=bias)
        self.o_proj = nn.Linear(values, width, bias=bias)
        self.features, self.eps = feature_map(config.feature_map), config.normalizer_eps
        self.position = position
        self.joint = config.rotary != "numerator" and not self.features.per_channel

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        keys, values = self.head_dim + self.features.constant, self.value_dim
        shapes = [(keys, values + 1)] if self.joint else [(keys, values), (keys, 1)]
        return tuple(torch.zeros(batch, self.heads, *shape, dtype=wide, device=device) for shape in shapes)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (b h t d)
        v = self.position.turn(v, context)
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k = self.features.query(q.to(wide)), self.features.key(k.to(wide))
        if context.mask is not None:
            k = k * context.mask[:, None, :, None]
        attend = self.attend_jointly if self.joint else self.attend_apart
        y, state = attend(q, k, v.to(wide), context, state)
        return self.o_proj(merge_heads(y).to(x.dtype)), state

    def sums(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Tensor | None) -> tuple[Tensor, State]:
        """q_t times the sum of k^T v over what t sees, and that sum after the last token."""
        if context.causal:
            return matrix_recurrence(q, k, v, state=state, segments=context.segments)
        return bidirectional_product(q, k, v, context.segments), None

    def attend_jointly(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State) -> tuple[Tensor, State]:
        """Numerator and denominator share their features: z is one more column of S."""
        memory = None if state is None else state[0]
        q, k = self.lift(*self.position.rotate(q, k, context), context)
        y, memory = self.sums(q, k, append_one(v), context, memory)
        return y[..., :-1] / (y[..., -1:] + self.eps), (memory,)

    def attend_apart(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State) -> tuple[Tensor, State]:
        """The denominator sees features that are not rotated, or has one sum for each feature."""
        memory, past = (None, None) if state is None else state
        if self.features.per_channel:
            one = torch.ones_like(v[..., :1])
            weight, past = self.sums(one, one, k, context, None if past is None else past.transpose(-1, -2))
            q, weight, past = q / (weight + self.eps), None, None if past is None else past.transpose(-1, -2)
        else:
            weight, past = self.sums(*self.lift(q, k, context), torch.ones_like(v[..., :1]), context, past)
        q, k = self.lift(*self.position.rotate(q, k, context), context)
        y, memory = self.sums(q, k, v, context, memory)
        return y if weight is None else y / (weight + self.eps), (memory, past)

    def lift(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Append the constant feature, where the map has one: 1 for queries and for the keys of real tokens."""
        if not self.features.constant:
            return q, k
        one = torch.ones_like(k[..., :1])
        return append_one(q), torch.cat((k, one if context.mask is None else one * context.mask[:, None, :, None]), -1)
