r"""The delta rule as it is defined: one token, and one token after the other.

    S_t = exp(g_t) S_(t-1) + b_t^T (a_t S_(t-1)) + k_t^T v_t        y_t = q_t S_t

RWKV-7 (arXiv:2503.14456) has a = -kappa and b = kappa * (learning rate), DeltaNet (arXiv:2406.06484) g = 0,
a = -k and b = k times the learning rate.
Shapes: q, k, a, b, g (b h t dk); v (b h t dv); state (b h dk dv).
"""

import torch
from torch import Tensor


def step(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Advance by one token: all (b h 1 d)."""
    kept = torch.addcmul(state * decay.exp().mT, b.mT, a @ state)
    new = torch.addcmul(kept, k.mT, v)
    return q @ new, new


def sequential(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Walk through the tokens one by one: the truth that the other forms are compared with."""
    outputs = []
    for token in zip(*(x.split(1, 2) for x in (q, k, v, a, b, decay)), strict=True):
        y, state = step(*token, state=state)
        outputs.append(y)
    return torch.cat(outputs, 2), state
