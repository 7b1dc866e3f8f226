r"""The delta rule over all chunks at once: a number of operations that grows with the logarithm of the length only.

With u_t = a_t S_(t-1) the delta rule is a matrix-state recurrence of two keys and values, (k_t, v_t) and (b_t, u_t).
Inside a chunk that begins with the state S, for the scores P_xy[t, s] = sum_d x_td y_sd exp(c_td - c_sd), s <= t, and
with a read one token early (row t stands for a_(t+1)):

    (I - L) U = shift(P_ak V + (a exp(c)) S),   L = shift(P_ab)         a triangular system (the UT transform)
    Y = P_qk V + P_qb U + (q exp(c)) S
    S' = exp(c_T) S + (exp(c_T - c) k)^T V + (exp(c_T - c) b)^T U

U is linear in S, so that a chunk maps S to M S + N; the maps of all chunks are composed by doubling (Hillis, Steele).
The scores are put together by halving, safe for every decay: see ``matrix_chunkwise``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_tracing_graph
from .matrix_chunkwise import decayed_scores, join_chunks, split_chunks
from .matrix_plain import decay_floor

# Doublings in an exported program, whose length is open: 2^14 chunks of 64 tokens.
DOUBLINGS = 14
# A map of zeros before the others.
PAST_ONE = (0, 0, 0, 0, 1, 0)


def chunkwise(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the delta rule chunk by chunk in parallel; memory is linear in the length."""
    length, width = q.shape[2], v.shape[-1]
    decay = decay.clamp(min=decay_floor(decay.dtype))
    q, k, v, a, b, decay = (split_chunks(x) for x in (q, k, v, a, b, decay))
    early = F.pad(a[..., 1:, :], (0, 0, 0, 1))
    both = torch.stack([q, early])  # (2 b h n t dk): what reads
    scores, prefix, suffix = decayed_scores(
        both[:, None].expand(-1, 2, *q.shape).flatten(0, 2),
        torch.stack([k, b]).expand(2, 2, *k.shape).flatten(0, 2),
        decay.expand(2, 2, *decay.shape).flatten(0, 2),
    )
    scores = scores.unflatten(0, (2, 2, q.shape[0]))
    prefix, suffix = (x.unflatten(0, (4, q.shape[0]))[0] for x in (prefix, suffix))
    from_values = _one_later(scores[1, 0] @ v)
    from_state = _one_later(early * prefix.exp()) + F.pad(a[..., :1, :], (0, 0, 0, a.shape[-2] - 1))
    system = -_one_later(scores[1, 1])
    rows = torch.cat([from_values, from_state], -1)
    solved = torch.linalg.solve_triangular(system, rows, upper=False, unitriangular=True)
    to_end = suffix.exp()
    added = (k * to_end).mT @ v
    maps = (b * to_end).mT @ solved  # (b h n dk dv+dk): what a chunk adds, and what it makes of S beside the decay
    transition = maps[..., width:] + torch.diag_embed(prefix[..., -1, :].exp())
    states = _compose(transition, added + maps[..., :width], state)
    before = states[:, :, :-1]
    u = solved[..., :width] + solved[..., width:] @ before
    y = scores[0, 0] @ v + scores[0, 1] @ u + (q * prefix.exp()) @ before
    return join_chunks(y, length), states[:, :, -1]


def _one_later(x: Tensor) -> Tensor:
    """Move the rows of (.. t d) down by one; a row of zeros comes first."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0))


def _compose(transition: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """Return the states S_0, S_1 = M_1 S_0 + N_1, ... (b h n+1 dk dv) for maps (b h n dk dk), (b h n dk dv).

    Maps are kept as [M | N]. Before all others stand the identity, where doubling reaches too far, and [0 | S_0].
    """
    width = transition.shape[-1]
    one = torch.eye(width, dtype=state.dtype, device=state.device).expand(*state.shape[:2], 1, -1, -1)
    first = torch.cat([one, torch.zeros_like(one)], 2)
    maps = torch.cat(
        [torch.cat([first, transition], 2), F.pad(torch.cat([state[:, :, None], added], 2), PAST_ONE)], -1
    )
    places = torch.arange(maps.shape[2], device=state.device)
    for level in range(DOUBLINGS if is_tracing_graph() else transition.shape[2].bit_length()):
        earlier = maps.index_select(2, (places - 2**level).clamp(min=0))
        maps = maps[..., :width] @ earlier + F.pad(maps[..., width:], (width, 0))
    return maps[:, :, 1:, :, width:]
