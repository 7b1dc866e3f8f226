r"""The matrix-state recurrence over all chunks at once: a fixed number of operations, whatever the length.

Inside a chunk the pairs of tokens are compared, between chunks only the state is handed on:

    y_t = sum_(s<=t, same chunk) exp(c_t - c_s) (q_t . k_s) v_s  +  exp(c_t) q_t S_start
    S_end = exp(c_T) S_start + sum_s exp(c_T - c_s) k_s^T v_s           c counted from the start of the chunk

No difference c_t - c_s of cumulative sums is ever formed, since it would lose precision, and exp(c_t) exp(-c_s)
would overflow. The chunk is halved again and again instead: every pair t > s is parted by some middle, and its decay
is exp(from the middle to t) * exp(from s to the middle), both at most 1. The two halves' sums grow from single tokens
upwards by additions alone, so that even -inf is harmless.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_tracing_graph
from .matrix_plain import decay_floor, wide_dtype

CHUNK = 64
ALL = slice(None)


def chunkwise(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk in parallel; linear in the length but for one (chunks x chunks) matrix."""
    length = q.shape[2]
    q, k, v = split_chunks(q), split_chunks(k), split_chunks(v)
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    if decay is None:
        inside = (q @ k.transpose(-1, -2)).tril() @ v
        states = torch.cat([state[:, :, None], k.transpose(-1, -2) @ v], dim=2).cumsum(2)
    else:
        decay = split_chunks(_per_token(decay, length))
        scores, prefix, suffix = decayed_scores(q, k, decay)
        inside = scores @ v
        q, k = q * prefix.exp(), k * suffix.exp()
        states = _carry(torch.cat([state[:, :, None], k.transpose(-1, -2) @ v], dim=2), prefix[:, :, :, -1])
    y = inside + q @ states[:, :, :-1]
    return join_chunks(y, length), states[:, :, -1]


def _per_token(decay: Tensor, length: int) -> Tensor:
    """Return a decay as (1|b h t 1|dk)."""
    if decay.dim() == 1:
        return decay[None, :, None, None].expand(1, -1, length, 1)
    return decay[..., None] if decay.dim() == 3 else decay


def split_chunks(x: Tensor) -> Tensor:
    """Cut (b h t d) into (b h chunks CHUNK d), filled up with zeros, which neither decay nor add.

    Into a graph with a symbolic length goes a spare chunk, so that no size in it can turn out to be 0 or 1, and
    positions instead of a padding, either of which would lay conditions upon the length.
    """
    length = x.shape[2]
    if not is_tracing_graph():
        return F.pad(x, (0, 0, 0, -length % CHUNK)).unflatten(2, (-1, CHUNK))
    chunks = (length + 2 * CHUNK - 1) // CHUNK
    positions = torch.arange(chunks * CHUNK, device=x.device)
    inside = (positions < length)[:, None]
    return (x.index_select(2, positions.clamp(max=length - 1)) * inside).unflatten(2, (chunks, CHUNK))


def join_chunks(x: Tensor, length: int) -> Tensor:
    """Return (b h t d) for what ``split_chunks`` has cut."""
    x = x.flatten(2, 3)
    return x.index_select(2, torch.arange(length, device=x.device)) if is_tracing_graph() else x[:, :, :length]


def decayed_scores(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the causal scores (.. T T) with their decays, the sums of decay up to each token, and those after it.

    A decay per token multiplies finished scores, one per channel has to enter each product q . k.
    """
    per_channel = decay.shape[-1] > 1
    prefix, suffix = decay.unsqueeze(-2), torch.zeros_like(decay).unsqueeze(-2)
    matrix = (q * k).sum(-1)[..., None, None] if per_channel else torch.ones_like(prefix)
    first, second = (
        (..., slice(0, None, 2), ALL, ALL),
        (..., slice(1, None, 2), ALL, ALL),
    )
    half = 1
    while half < CHUNK:
        to_token, to_middle = prefix[second], suffix[first]
        if per_channel:
            blocks = (-2, (CHUNK // half, half))
            left, right = q.unflatten(*blocks)[second] * to_token.exp(), k.unflatten(*blocks)[first] * to_middle.exp()
            corner = left @ right.transpose(-1, -2)
        else:
            corner = (to_token + to_middle.transpose(-1, -2)).exp()
        top = torch.cat([matrix[first], torch.zeros_like(corner)], dim=-1)
        matrix = torch.cat([top, torch.cat([corner, matrix[second]], dim=-1)], dim=-2)
        whole_first, whole_second = prefix[first][..., -1:, :], to_token[..., -1:, :]
        prefix = torch.cat([prefix[first], to_token + whole_first], dim=-2)
        suffix = torch.cat([to_middle + whole_second, suffix[second]], dim=-2)
        half *= 2
    matrix = matrix.squeeze(-3)
    return matrix if per_channel else (q @ k.transpose(-1, -2)) * matrix, prefix.squeeze(-3), suffix.squeeze(-3)


def _carry(sums: Tensor, decay: Tensor) -> Tensor:
    """Return the states between chunks: S_i = sum_(j<=i) exp(decay of chunks j .. i-1) sums_j.

    sums (b h n+1 dk dv): the initial state, then what each chunk adds; decay (1|b h n 1|dk): each chunk's whole.
    """
    wide = decay.to(wide_dtype(decay)).clamp(min=decay_floor(decay.dtype))
    cumulative = F.pad(wide.cumsum(2), (0, 0, 1, 0)).transpose(-1, -2)
    between = cumulative[..., :, None] - cumulative[..., None, :]
    later = torch.ones_like(between[0, 0, 0], dtype=torch.bool).triu(1)
    weights = between.masked_fill(later, -torch.inf).to(sums.dtype).exp()
    if weights.shape[2] == 1:
        return (weights[:, :, 0] @ sums.flatten(-2)).unflatten(-1, sums.shape[-2:])
    return (weights @ sums.transpose(2, 3)).transpose(2, 3)
