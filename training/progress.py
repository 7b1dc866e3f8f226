"""A progress bar for training that ends by the clock."""

import sys

from tqdm.auto import tqdm

from .budget import Budget


class ProgressBar:
    """A bar over the budget, in seconds of training, or in steps where the run is counted in steps.

    per_step: how many `things` a step trains on; their number in a second is shown.
    Off a terminal it prints a line every ten seconds at most, so that log files stay short.
    """

    def __init__(self, budget: Budget, per_step: int, things: str = "tokens", label: str = "training") -> None:
        self.per_step, self.things = per_step, things
        self.begin = (budget.step, budget.elapsed)
        unit = "s" if budget.steps is None else "steps"
        self.bar = tqdm(
            total=budget.steps or budget.seconds,
            desc=label,
            mininterval=0.25 if sys.stderr.isatty() else 10,
            bar_format="{desc} {percentage:3.0f}%|{bar:24}| {n:.0f}/{total:.0f} " + unit + "{postfix}",
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def report(self, budget: Budget, loss: float | None) -> None:
        """Moves the bar to where `budget` stands and shows the step, the loss and the speed of this session."""
        step, elapsed = self.begin
        rate = (budget.step - step) * self.per_step / max(budget.elapsed - elapsed, 1e-9)
        shown = "" if loss is None else f", loss {loss:.3f}"
        self.bar.set_postfix_str(f"step {budget.step}{shown}, {rate:,.0f} {self.things}/s", refresh=False)
        done = budget.elapsed if budget.steps is None else budget.step
        self.bar.update(min(done, self.bar.total) - self.bar.n)
