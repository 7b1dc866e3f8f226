"""The terms of a loss between two entries of the log: averaged over steps and processes, and never infinite."""

from collections import defaultdict
from collections.abc import Mapping
from math import isfinite

import torch
from accelerate import Accelerator
from torch import Tensor


class LossTerms:
    """Collects named scalars; `of_step` has those of the step under way.

    A value that is not finite, on whatever process, stops all processes by FloatingPointError.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)
        self.of_step: dict[str, float] = defaultdict(float)

    def add(self, terms: Mapping[str, Tensor | float], step: int, share: float = 1.0, prefix: str = "") -> None:
        """terms: scalars of a part of step `step` that makes up `share` of it."""
        device = self.accelerator.device
        values = torch.stack([torch.as_tensor(term, device=device).detach().float() for term in terms.values()])
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        for name, value in zip(terms, means, strict=True):
            if not isfinite(value):
                raise FloatingPointError(f"in step {step}, `{prefix}{name}` is {value}; training stops.")
            self.sums[prefix + name] += value * share
            self.weights[prefix + name] += share
            self.of_step[prefix + name] += value * share

    def pop(self) -> dict[str, float]:
        """The means of what has been collected, which is forgotten."""
        means = {name: total / self.weights[name] for name, total in self.sums.items() if self.weights[name]}
        self.sums.clear()
        self.weights.clear()
        return means
