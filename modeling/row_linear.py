"""Linear layers for one or two rows on a CPU: decoding, where time is the reading of weights.

    y = x W^T + b  for x (1 k), W (n k), as a batched product over four parts of W's rows:  W_g x^T, (n/4 k) (k 1)

torch's own routine for one row reads W at about half the memory's speed here; the batched product of the same numbers
reads it at nearly all of it (benchmarks/decode.py). Weights are neither copied nor stored otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ROWS = 2


class RowLinear(nn.Linear):
    """What a plain nn.Linear is during decoding: the same parameters, and the fast product where it applies."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
        if plain or rows > ROWS or not rows or input.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        parts = 4 if self.out_features % 4 == 0 else 1
        weight = self.weight.view(parts, -1, self.in_features)
        # As a transposed view: a column that was copied is three times slower.
        columns = input.reshape(rows, -1).t()[None].expand(parts, -1, -1)
        y = torch.bmm(weight, columns).flatten(0, 1).t().reshape(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


def may_turn(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer: quantised, wrapped and sharded ones have other types or weights."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


@contextmanager
def row_linears(model: nn.Module) -> Iterator[None]:
    """Within the block every plain linear layer of `model` is a RowLinear; after it, what it was."""
    turned = [module for module in model.modules() if may_turn(module)]
    try:
        for module in turned:
            module.__class__ = RowLinear
        yield
    finally:
        for module in turned:
            module.__class__ = nn.Linear
