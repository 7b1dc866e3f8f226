"""Two networks that are trained against each other, by transformers' Trainer.

A step is a step of the generator followed by a step of its critic on the same data. With `n_critic` the generator sits
out all steps but each n-th one. Goodfellow et al. 2014 (arXiv:1406.2661), Arjovsky et al. 2017 (arXiv:1701.07875).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint

from .adversarial_checkpoint import load_adversary, save_adversary
from .critic_optimizer import make_critic_optimizer
from .data_parallel import Replica, average_gradients, average_statistics, frozen, synchronise
from .loss_terms import LossTerms


class Alternation(TrainerCallback):
    """Tells an AdversarialTrainer when a run begins and when its generator has stepped."""

    def __init__(self, trainer: "AdversarialTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        self.trainer.begin()

    def on_optimizer_step(self, *args: object, **kwargs: object) -> None:
        self.trainer.critic_step()

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        self.trainer.average_statistics()


class AdversarialTrainer(Trainer):
    """`transformers.Trainer` of a `model` and its `critic`, which may be a part of the model, or None.

    critic_learning_rate, critic_max_grad_norm: by default those of `args`, as everything else about the optimizers.
    critic_optimizers: the critic's (optimizer, scheduler), as `optimizers` has the generator's.
    n_critic: the critic's steps for each one of the generator. `args.max_steps` counts the critic's.
    ema_decay: keeps a running mean of the generator's weights, which is evaluated and which `save_model` writes.

    A sub-class says what is lost:
    - `generator_losses(batch)` -> {"loss": the scalar to minimise, name: another scalar to log, ...};
    - `critic_losses(batch)` -> the same for the critic, whose terms are logged as `critic_name`; {} to let it rest;
    - `after_critic_step()`: what follows the critic's step, such as clipping its weights;
    - `after_step()`: what follows the step of both; `self.terms.of_step` has the step's terms.
    The losses are called under autocast where `args` ask for mixed precision, once for each batch of a step in turn,
    and `critic_losses` after the generator has stepped; both get the same mapping, so that the first may leave in it
    what the second needs. Only the network whose turn it is collects gradients.

    Losses are means over a batch's rows; batches that are accumulated count by their rows, those of processes alike. A
    term or gradient that is not finite ends the run by FloatingPointError before what it has changed is saved.
    Checkpoints hold what it takes to go on as if nothing had happened. Rows that a data set draws from the global
    random generator are the exception: it has moved on when they are drawn again.
    """

    n_critic = 1

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *,
        critic: nn.Module | None,
        critic_learning_rate: float | None = None,
        critic_max_grad_norm: float | None = None,
        critic_optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        n_critic: int = 1,
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        if n_critic < 1:
            raise ValueError(f"`n_critic` must be at least 1, not {n_critic}.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, not {ema_decay}.")
        super().__init__(model, args, **kwargs)
        self.refuse_unsupported()
        critic = nn.Module() if critic is None else critic
        self.critic = critic.to(self.args.device)
        self.critic_learns = any(p.requires_grad for p in critic.parameters())
        self.critic_is_part = {id(p) for p in critic.parameters()} <= {id(p) for p in self.model.parameters()}
        own = critic_learning_rate, critic_max_grad_norm
        self.critic_learning_rate = self.args.learning_rate if own[0] is None else own[0]
        self.critic_max_grad_norm = self.args.max_grad_norm if own[1] is None else own[1]
        self.critic_optimizer, self.critic_scheduler = critic_optimizers
        self.creates_critic_scheduler = self.critic_scheduler is None
        self.n_critic = n_critic
        self.average = None
        if ema_decay is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        self.terms = LossTerms(self.accelerator)
        self.turn: list[tuple[dict[str, Any], float]] = []
        self.resumed_from: str | None = None
        self.add_callback(Alternation(self))

    def refuse_unsupported(self) -> None:
        if self.args.fp16:
            raise ValueError("two networks cannot share fp16's loss scale; use bf16=True.")
        if self.args.torch_compile:
            raise ValueError(
                "torch_compile would compile one network of two; call `compile()` of those that gain by it."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("AdversarialTrainer keeps whole networks on each process: no DeepSpeed, no FSDP.")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} devices and one process: start with `accelerate launch`, or show it one device."
            )

    def generator_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} does not say what its generator loses.")

    def critic_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} does not say what its critic loses.")

    def after_critic_step(self) -> None:
        """Called when the critic has stepped, for what constrains its weights."""

    def after_step(self) -> None:
        """Called at the end of each step, with its number still in `self.state.global_step`."""

    def extra_state(self) -> dict[str, Any]:
        """What a sub-class wants in checkpoints, as JSON has it; called on all processes."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `extra_state` gave."""

    @property
    def generator_parameters(self) -> list[nn.Parameter]:
        others = {id(p) for p in self.critic.parameters()}
        return [p for p in self.model.parameters() if id(p) not in others]

    @property
    def generator_moves(self) -> bool:
        """Whether the step that is under way is one of the generator's."""
        return (self.state.global_step + 1) % self.n_critic == 0

    def begin(self) -> None:
        """Everything that the critic needs for a run, from the checkpoint where there is one."""
        self.turn.clear()
        if self.critic_learns:
            self.critic_optimizer = self.accelerator.prepare(self.critic_optimizer or self.create_critic_optimizer())
            if self.creates_critic_scheduler:
                self.critic_scheduler = self.create_critic_scheduler(self.state.max_steps)
        for module in (self.model, self.critic):
            synchronise(module, self.accelerator)
        if self.resumed_from is not None:
            load_adversary(self, self.resumed_from)
        elif self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())
        self.resumed_from = None

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        with frozen(self.critic.parameters()):
            return super().create_optimizer(model)

    def create_critic_optimizer(self) -> Optimizer:
        """The optimizer that `args` name, with the critic's own learning rate."""
        return make_critic_optimizer(self, self.critic, self.critic_learning_rate)

    def create_critic_scheduler(self, num_training_steps: int) -> LRScheduler:
        """What `create_scheduler` makes of the critic's optimizer."""
        generators, self.lr_scheduler = self.lr_scheduler, None
        try:
            return self.create_scheduler(num_training_steps, self.critic_optimizer)
        finally:
            self.lr_scheduler = generators

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: object = None) -> nn.Module:
        return Replica(model) if training and not isinstance(model, Replica) else model

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.rows = sum(rows_of(batch) for batch in batches)
        return batches, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.model.train()
        self.critic.train()
        if not self.turn:
            self.terms.of_step.clear()
        share, batch = rows_of(inputs) / self.rows, self._prepare_inputs(inputs)
        self.turn.append((batch, share))
        if not self.generator_moves:
            return torch.zeros((), device=self.args.device)
        with frozen(self.critic.parameters()):
            with self.accelerator.autocast():
                losses = self.generator_losses(batch)
            self.terms.add(losses, self.state.global_step + 1, share)
            self.accelerator.backward(losses["loss"] * share)
        if len(self.turn) == self.current_gradient_accumulation_steps:
            self.finish_gradients(self.generator_parameters, "grad_norm")
        return losses["loss"].detach() * share

    def finish_gradients(self, parameters: list[nn.Parameter], name: str) -> None:
        average_gradients(parameters, self.accelerator)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.terms.add({name: norm}, self.state.global_step + 1)

    def critic_step(self) -> None:
        """The critic's turn, on the batches that the generator has just had, and the end of the step."""
        turn, self.turn = self.turn, []
        if self.critic_learns:
            self.move_critic(turn)
            self.critic_rate = self.critic_scheduler.get_last_lr()[0]
            self.critic_scheduler.step()
        if self.average is not None and self.generator_moves:
            self.average.update_parameters(self.model)
        self.after_step()

    def move_critic(self, turn: list[tuple[dict[str, Any], float]]) -> None:
        moves, parameters = False, list(self.critic.parameters())
        with frozen(self.generator_parameters):
            for batch, share in turn:
                with self.accelerator.autocast():
                    losses = self.critic_losses(batch)
                if losses:
                    self.terms.add(losses, self.state.global_step + 1, share, "critic_")
                    self.accelerator.backward(losses["loss"] * share)
                    moves = True
        if moves:
            self.finish_gradients(parameters, "critic_grad_norm")
            if self.critic_max_grad_norm > 0:
                nn.utils.clip_grad_norm_(parameters, self.critic_max_grad_norm)
        self.critic_optimizer.step()  # without gradients it leaves everything as it is, and its scheduler is content
        self.critic_optimizer.zero_grad()
        if moves:
            self.after_critic_step()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            rate = {"critic_learning_rate": self.critic_rate} if self.critic_learns else {}
            logs = {**logs, **self.terms.pop(), **rate}
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        except FloatingPointError as error:
            folder = Path(self.args.output_dir)
            last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
            kept = f"The last checkpoint before it is {last}." if last else "There is no checkpoint before it."
            raise FloatingPointError(f"{error} {kept}") from None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`self.model` is the mean of the weights inside, where one is kept."""
        own = self.model
        if self.average is not None:
            self.model = self.average.module
        try:
            yield
        finally:
            self.model = own

    def average_statistics(self) -> None:
        """Batch norms have seen each process's own rows: all go on with the mean of what they noted."""
        for module in (self.model, self.critic, self.average):
            if module is not None:
                average_statistics(module, self.accelerator)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self.average_statistics()
        with self.averaged():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:
            self.average_statistics()
            return super().save_model(output_dir, _internal_call=True)
        with self.averaged():
            return super().save_model(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_adversary(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.resumed_from = checkpoint


def rows_of(batch: Mapping[str, Any]) -> int:
    """How many rows a batch has."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)
