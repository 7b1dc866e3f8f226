"""Recursive positions (Su 2021, kexue.fm/archives/8130): the code of a position is made from the one before.

p_(k+1) = f(p_k),     f(p) = tanh(W p + b),     x_k + p_k

W begins orthogonal and p_0 small, so that codes turn and hardly shrink: tanh takes |p| to |p| (1 - O(|p|^2 / d)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .chain import Chain, make_operator


class Recurrence(nn.Module):
    """p_0 (d), W (d d) and b (d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.start, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.weight = nn.Parameter(torch.empty(dim, dim))

    def initialize(self, std: float) -> None:
        nn.init.normal_(self.start, std=std)
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.start, self.weight, self.bias


def step(weights: Sequence[Tensor], p: Tensor, k: int) -> Tensor:
    """f(p) (d)."""
    _, weight, bias = weights
    return torch.tanh(torch.addmv(bias, weight, p))


class Recursive(Chain):
    """Codes `dim` wide for any number of positions, in time that is linear in the largest."""

    step = staticmethod(step)
    operator = staticmethod(make_operator("recursive_codes", step))

    def __init__(self, dim: int) -> None:
        super().__init__(Recurrence(dim))
