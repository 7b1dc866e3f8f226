"""Bidirectional sums over whole sequences, for attention without softmax.

S = sum_j k_j^T v_j over the tokens j of a token's own sequence,   y_i = q_i S
"""

import torch
from torch import Tensor


def bidirectional_product(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None = None) -> Tensor:
    """q, k (b h t dk), v (b h t dv), segments (b t) or None -> y (b h t dv) in v's dtype, summed in float32."""
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k, values = q.to(wide), k.to(wide), v.to(wide)
    if segments is None:
        return (q @ (k.transpose(-1, -2) @ values)).to(v.dtype)
    numbers = torch.arange(int(segments.max()) + 1, device=segments.device)
    member = (segments[..., None] == numbers).to(wide)  # (b t s)
    sums = torch.einsum("bhtd,bhte,bts->bhsde", k, values, member)
    return torch.einsum("bhtd,bts,bhsde->bhte", q, member, sums).to(v.dtype)
