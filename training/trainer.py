"""Training for a given time instead of a given number of epochs: the learning rate and the stop follow the clock."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .budget import Budget


class BudgetCallback(TrainerCallback):
    """Stops the Trainer when the budget is spent, or, with a checkpoint, as soon as `stop_requested` says so.

    Every entry of the Trainer's log history gets the training time in `seconds`; `report(budget, loss)` is called
    after each step with the last logged loss (None at first).
    """

    def __init__(
        self,
        budget: Budget,
        stop_requested: Callable[[], bool] = lambda: False,
        report: Callable[[Budget, float | None], None] = lambda budget, loss: None,
    ) -> None:
        self.budget, self.stop_requested, self.report = budget, stop_requested, report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.budget.start()
        self.budget.step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.budget.advance(state.global_step)
        losses = [entry["loss"] for entry in state.log_history[-1:] if "loss" in entry]
        self.report(self.budget, losses[-1] if losses else None)
        if self.budget.spent >= 1:
            control.should_training_stop = True
        elif self.stop_requested():
            control.should_training_stop = control.should_save = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.log_history:
            state.log_history[-1]["seconds"] = self.budget.elapsed


class BudgetTrainer(Trainer):
    """`transformers.Trainer` whose learning rate is the one in its arguments times `budget.factor()`."""

    def __init__(self, *args: object, budget: Budget, **kwargs: object) -> None:
        self.budget = budget
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            # A function, not the Budget itself: a scheduler would store an object's fields in the checkpoint and put
            # them back on resuming, and with them the old length of the run.
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: self.budget.factor())
            self._created_lr_scheduler = True
        return self.lr_scheduler
