"""How long a training may last, and what that means for its learning rate."""

import time
from dataclasses import dataclass


@dataclass
class Budget:
    """How much training is allowed and how much of it is spent.

    Either `seconds` of training time or, for runs that repeat exactly, `steps` of the optimizer; `steps` decides where
    both are given. `elapsed` is what earlier parts of an interrupted run have used up, in seconds.
    """

    seconds: float
    steps: int | None = None
    elapsed: float = 0.0
    step: int = 0
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if self.steps is None and not self.seconds > 0:
            raise ValueError(f"the training time must be longer than 0 seconds, got {self.seconds}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"the number of training steps must be at least 1, got {self.steps}")
        self._base, self._since = self.elapsed, time.monotonic()

    def start(self) -> None:
        """Starts the clock; time before this call is not counted."""
        self._base, self._since = self.elapsed, time.monotonic()

    def advance(self, step: int) -> None:
        """Notes that `step` optimizer steps are done by now, counted from the beginning of the whole run."""
        self.step, self.elapsed = step, self._base + time.monotonic() - self._since

    @property
    def spent(self) -> float:
        """The share of the budget that is used up, 0 to 1."""
        return min(1.0, self.elapsed / self.seconds if self.steps is None else self.step / self.steps)

    def factor(self) -> float:
        """What the learning rate is multiplied with: a linear rise to 1 over `warmup`, then a linear fall to 0."""
        if self.spent < self.warmup:
            return max(self.spent, 1e-3) / self.warmup
        return (1 - self.spent) / (1 - self.warmup)
