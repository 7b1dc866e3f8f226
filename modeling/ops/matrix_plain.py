r"""The matrix-state recurrence as it is defined, in three plain forms that autograd differentiates.

    S_t = exp(g_t) S_(t-1) + k_t^T v_t                                   the recurrence: ``step``, ``sequential``
    y_t = q_t S_t
        = exp(c_t) q_t S_0 + sum_(s<=t) exp(c_t - c_s) (q_t . k_s) v_s   the same unrolled: ``parallel``
    c_t = g_1 + ... + g_t

Linear attention (arXiv:2006.16236) has g = 0, RetNet (arXiv:2307.08621) one constant g per head, Mamba-2
(arXiv:2405.21060) one per token, gated linear attention (arXiv:2312.06635) one per token and channel.
Shapes: q, k (b h t dk); v (b h t dv); state (b h dk dv); decay None, (h), (b h t) or (b h t dk).
"""

import torch
from torch import Tensor


def decay_floor(dtype: torch.dtype) -> float:
    """Return a logarithm whose exponential is 0 in ``dtype``; smaller decays (-inf among them) are raised to it.

    Cumulative sums then stay finite, and precise: a difference of two of them loses no more than they are large.
    """
    return -800.0 if dtype == torch.float64 else -128.0


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which decays are summed: float64 wherever the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def row_factor(decay: Tensor | None, t: int | None = None) -> Tensor | None:
    """Return exp(decay) of token ``t`` (of the only token where None) as a factor of the state (b h dk dv)."""
    if decay is None:
        return None
    if decay.dim() == 1:
        return decay.exp()[:, None, None]
    token = decay.squeeze(2) if t is None else decay[:, :, t]
    return token.exp()[..., None] if decay.dim() == 4 else token.exp()[..., None, None]


def step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Advance by one token: q, k (b h 1 dk), v (b h 1 dv)."""
    column = k.transpose(-1, -2)
    if state is None:
        new = column * v
    else:
        factor = row_factor(decay)
        new = torch.addcmul(state if factor is None else state * factor, column, v)
    return q @ new, new


def sequential(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Walk through the tokens one by one: the truth that the other forms are compared with."""
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        factor = row_factor(decay, t)
        past = state if factor is None else state * factor
        state = past + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(q[:, :, t, None] @ state)
    return torch.cat(outputs, dim=2), state


def parallel(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compare all pairs of tokens: quadratic in the length, and for a decay per channel in memory too."""
    length = q.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if decay is None:
        scores, to_end, from_start = (q @ k.transpose(-1, -2)) * visible, k, q
        total = None
    else:
        cumulative = cumulative_decay(decay, length)
        last = cumulative[..., -1:, :]
        pairs = (cumulative[..., :, None, :] - cumulative[..., None, :, :]).to(q.dtype)
        weights = pairs.masked_fill(~visible[..., None], -torch.inf).exp()
        if weights.shape[-1] == 1:
            scores = (q @ k.transpose(-1, -2)) * weights[..., 0]
        else:
            scores = (q[..., :, None, :] * k[..., None, :, :] * weights).sum(-1)
        to_end = k * (last - cumulative).to(q.dtype).exp()
        from_start = q * cumulative.to(q.dtype).exp()
        total = last.to(q.dtype).exp().transpose(-1, -2)
    y, final = scores @ v, to_end.transpose(-1, -2) @ v
    if state is not None:
        y = y + from_start @ state
        final = final + (state if total is None else state * total)
    return y, final


def cumulative_decay(decay: Tensor, length: int) -> Tensor:
    """Return the cumulative sums of a decay over its tokens as (1|b h t 1|dk), in the widest type."""
    decay = decay.to(wide_dtype(decay)).clamp(min=decay_floor(decay.dtype))
    if decay.dim() == 1:
        steps = torch.arange(1, length + 1, dtype=decay.dtype, device=decay.device)
        return (decay[:, None] * steps)[None, ..., None]
    if decay.dim() == 3:
        decay = decay[..., None]
    return decay.cumsum(2)
