"""Bucketed relative biases: Raffel et al. 2020, T5 (arXiv:1910.10683), section 2.1.

score_ij = q_i k_j^T / sqrt(d) + beta[h, f(i - j)]

f(n) = n for 0 <= n < e,   min(e + floor(log(n/e) / log(N/e) (B - e)), B - 1) beyond,   e = B/2
In both directions B is half the buckets, and keys that lie ahead (n < 0) have B + f(|n|); in one direction B is all of
them and keys ahead, which are not seen, share bucket 0.

T5 itself leaves out 1/sqrt(d) and starts from smaller weights; here the scores keep it, as in the other encodings.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding, distances


def bucket_starts(buckets: int, max_distance: int) -> list[int]:
    """The least distances of the buckets 1 .. `buckets` - 1 of one direction, by integer arithmetic alone.

    Raises ValueError where there is no room for exact and logarithmic buckets.
    """
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{buckets} buckets for one direction, {exact} of them exact, cannot reach to distance {max_distance}: "
            "set `relative_buckets` to at least 4 and `relative_max_distance` above half of it."
        )
    steps, starts = buckets - exact, list(range(1, exact + 1))
    for step in range(1, steps):
        start = max(starts[-1], int(exact * (max_distance / exact) ** (step / steps)) - 1)
        # The least start with start >= exact (max_distance / exact)^(step / steps), both raised to the power `steps`.
        while start**steps * exact**step < max_distance**step * exact**steps:
            start += 1
        starts.append(start)
    return starts


class T5Bias(PositionEncoding):
    """beta (buckets, heads), computed once for all layers, which read it with `SharedBias`.

    two_sided (bool): keys ahead have their own buckets even in a causal model, as where a UniLM mask shows some.
    """

    def __init__(self, heads: int, buckets: int, max_distance: int, two_sided: bool = False) -> None:
        super().__init__()
        self.two_sided, self.side = two_sided, buckets // 2
        self.starts = {both: bucket_starts(self.side if both else buckets, max_distance) for both in (False, True)}
        self.table = nn.Embedding(buckets, heads)

    def buckets(self, distance: Tensor, both: bool) -> Tensor:
        """f of the distances i - j, int64 of the same shape."""
        starts = torch.tensor(self.starts[both], device=distance.device)
        near = distance.abs() if both else distance.clamp(min=0)
        bucket = torch.bucketize(near, starts, right=True)
        return bucket + (distance < 0) * self.side if both else bucket

    def share(self, x: Tensor, context: Context) -> Any:
        """(b h t s) or (1 h t s), the same for all layers."""
        buckets = self.buckets(distances(context), self.two_sided or not context.causal)
        return self.table(buckets).permute(0, 3, 1, 2).contiguous()


class SharedBias(PositionEncoding):
    """The layer's part of an encoding whose bias is the same in all layers: what the model's part shared."""

    def __init__(self, terms: int = 1) -> None:
        super().__init__()
        self.terms = terms

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return context.position
