"""Brings the real tokens of each row together, so that padding between them is as if it were not there."""

import torch
from torch import Tensor


def to_left(mask: Tensor) -> Tensor:
    """Where to take tokens from (b t), so that those with mask (b t) come first, in their order."""
    return torch.argsort((~mask).byte(), dim=1, stable=True)


def to_right(mask: Tensor) -> Tensor:
    """Where to take tokens from (b t), so that those with mask (b t) come last, in their order."""
    return torch.argsort(mask.byte(), dim=1, stable=True)


def from_left(mask: Tensor) -> Tensor:
    """Where each token of mask (b t) went by `to_left`; at padding the place of some other token."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def take(x: Tensor, order: Tensor) -> Tensor:
    """x (b h t) at the places `order` (b t) of each row."""
    return x.gather(-1, order[:, None].expand(-1, x.shape[1], -1))
