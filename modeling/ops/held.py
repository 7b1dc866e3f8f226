"""What depends on the weights alone, kept while generate() writes: no weight changes there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .recording import is_recording

HELD = "_held_while_decoding"


def held(module: nn.Module, compute: Callable[[], Any]) -> Any:
    """`compute()`, or what it gave before in the same `holding` block; one thing for a module."""
    kept = module.__dict__.get(HELD)
    if kept is None or torch.is_grad_enabled() or is_recording():
        return compute()
    if not kept:
        kept.append(compute())
    return kept[0]


@contextmanager
def holding(model: nn.Module) -> Iterator[None]:
    """Within the block weights stay as they are, and modules of `model` compute once what depends on them alone."""
    modules = list(model.modules())
    for module in modules:
        module.__dict__[HELD] = []
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop(HELD, None)
