"""Splitting the width into heads and back: layout (b h t d), as attention functions take it (after arXiv:1706.03762).

(b t (h d)) -> (b h t d)    and back
"""

from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b t (h d)) -> (b h t d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b h t d) -> (b t (h d))."""
    return x.transpose(1, 2).flatten(2)
