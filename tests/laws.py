"""What the law files share: comparing, padding, cutting, packing."""

from __future__ import annotations

import random

import pytest
import torch
from architectures import Entry
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def over(entries: list[Entry], law: str | None = None):
    """Parametrise a test over `entries`, skipping with its reason each that names `law` among its limits."""
    marked = [
        pytest.param(entry, id=entry.name, marks=pytest.mark.skip(reason=entry.limits[law]))
        if law in entry.limits
        else pytest.param(entry, id=entry.name)
        for entry in entries
    ]
    return pytest.mark.parametrize("entry", marked)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal to `tolerance`, relative to the largest entry of what is expected."""
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((found - expected).abs().max() / scale).item()
    assert error <= tolerance, f"relative error {error:.2e}"


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Finite and near in each tensor, relative to the largest entry of what is expected."""
    for index, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert x.isfinite().all(), index
        error = (x.double() - y.double()).abs().max().item()
        assert error <= tolerance * max(1e-3, y.abs().max().item()), (index, error)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# transformers' losses are computed in float32 whatever the model's dtype.
LOSS_TOLERANCE = 2e-6


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = LOSS_TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        error = (found[name] - grad).abs().max().item() / scale
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def cuts(length: int, seed: int) -> list[int]:
    """Lengths of random pieces, single tokens among them."""
    draw = random.Random(seed)
    pieces = []
    while sum(pieces) < length:
        pieces.append(min(draw.choice([1, 1, 2, 3, 5, 8]), length - sum(pieces)))
    return pieces


def ragged(rows: list[Tensor], side: str, fill: int = 7) -> tuple[Tensor, Tensor]:
    """Rows (t_i) of ids as one batch and its attention mask; `fill` stands at the padding and must be ignored."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def packed(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids in one row (1 t), and their positions, which restart at 0."""
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    return torch.cat(rows)[None], positions[None]


class LargestTensor(TorchDispatchMode):
    """Notes the numbers of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result
