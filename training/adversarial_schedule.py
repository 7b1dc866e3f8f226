"""When the discriminator joins VQGAN's training, and how fast its weight in the generator's loss grows.

A discriminator that begins at full weight, as published code has it, often ruins reconstructions for a while. Here it
learns at once when it joins, while the generator hears of it little by little.
"""

from collections.abc import Mapping
from typing import Any


class AdversarialSchedule:
    """start: a step (`int`), a share of the run (`float` below 1), or "plateau" of the reconstruction's loss.

    warmup: over how many steps (`int`), or which share of the run (`float`), the weight rises from 0 to 1. A plateau
    is where the loss, smoothed over some `patience` / 4 steps, has not fallen by a share of `threshold` for `patience`
    steps. Raises ValueError for values out of range.
    """

    def __init__(
        self,
        start: int | float | str = 0.25,
        warmup: int | float = 0.1,
        patience: int = 1000,
        threshold: float = 0.01,
    ) -> None:
        if start != "plateau" and not isinstance(start, int | float):
            raise ValueError(f'the discriminator starts at a step, a share of the run or "plateau", not {start!r}.')
        for name, value in (("start", 0 if start == "plateau" else start), ("warmup", warmup)):
            if value < 0 or (isinstance(value, float) and value > 1):
                raise ValueError(f"`{name}` must be a number of steps or a float from 0 to 1, not {value}.")
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1, not {patience}.")
        self.start, self.warmup, self.patience, self.threshold = start, warmup, patience, threshold
        self.first: int | None = None
        self.warmup_steps = 0
        self.smoothed = self.best = float("inf")
        self.waited = 0

    def begin(self, max_steps: int) -> None:
        """Turns shares into steps of a run of `max_steps`."""
        self.warmup_steps = round(self.warmup * max_steps) if isinstance(self.warmup, float) else self.warmup
        if isinstance(self.start, float):
            self.first = round(self.start * max_steps)
        elif isinstance(self.start, int):
            self.first = self.start

    def observe(self, step: int, loss: float) -> None:
        """The reconstruction's loss in `step`, counted from 0."""
        if self.first is not None:
            return
        share = min(1.0, 4 / self.patience)
        self.smoothed = loss if self.smoothed == float("inf") else self.smoothed + share * (loss - self.smoothed)
        if self.smoothed < self.best * (1 - self.threshold):
            self.best, self.waited = self.smoothed, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            self.first = step + 1

    def started(self, step: int) -> bool:
        """Whether the discriminator learns in `step`."""
        return self.first is not None and step >= self.first

    def factor(self, step: int) -> float:
        """What the generator's adversarial loss is multiplied by in `step`."""
        if not self.started(step):
            return 0.0
        return min(1.0, (step - self.first + 1) / (self.warmup_steps + 1))

    def state(self) -> dict[str, Any]:
        """What has been observed so far; {} where steps alone decide."""
        if self.start != "plateau" or self.best == float("inf"):
            return {}
        return {name: getattr(self, name) for name in ("first", "smoothed", "best", "waited")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)
