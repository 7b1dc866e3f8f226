"""GANs, trained by any objective of the family: Goodfellow et al. 2014 (arXiv:1406.2661) and those who followed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainingArguments

from ..modeling.gan import NoriaGANModel
from ..modeling.image.latents import check_labels
from ..modeling.image.objectives import make_objective
from ..modeling.image.penalties import PENALTIES, PENALTY_WEIGHTS, Penalty, clip_weights, spectral_regularization
from .adversarial import AdversarialTrainer

# The articles' settings: WGAN's weights and optimizer, WGAN-GP's Adam, DCGAN's Adam.
CLIP = 0.01
WGAN_CRITIC_STEPS = 5
CLIPPED = {"optim": "rmsprop", "learning_rate": 5e-5}
PENALISED = {"learning_rate": 1e-4, "adam_beta1": 0.0, "adam_beta2": 0.9}
PLAIN = {"learning_rate": 2e-4, "adam_beta1": 0.5, "adam_beta2": 0.999}


def gan_arguments(
    output_dir: str | Path, objective: str = "non_saturating", penalty: str | None = None, **changes: Any
) -> TrainingArguments:
    """TrainingArguments with the articles' optimizer for an objective; `changes` come on top.

    penalty: a penalty's name, or "spectral_norm" where that limits the critic instead. RMSProp at 5e-5 for "wgan"
    without one, Adam of betas 0 and 0.9 at 1e-4 with any, else DCGAN's Adam, betas 0.5 and 0.999 at 2e-4; batches of
    64, a constant rate, no decay and no clipping of gradients.
    """
    published = PENALISED if penalty else CLIPPED if objective == "wgan" else PLAIN
    common = {
        "per_device_train_batch_size": 64,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
    }
    return TrainingArguments(str(output_dir), **{**common, **published, **changes})


class GANTrainer(AdversarialTrainer):
    """Trains a NoriaGANModel on rows {"pixel_values": (c h w) or (d), "labels": a class where the model has them}.

    args: by default those of `gan_arguments`; `max_steps` counts steps of the critic.
    objective: a name of `OBJECTIVES`. n_critic: by default 5 for "wgan", else 1.
    penalty: a name of `PENALTIES`, with `penalty_weight`, by default its article's.
    clip: the critic's weights are put back into [-clip, clip] after each of its steps; by default 0.01 where nothing
    else limits a critic of "wgan"; 0 turns it off.
    spectral_weight: adds so many times the squared spectral norms of the critic's weights to its loss.

    Logged beside the losses: `critic_value`, what the critic maximises without its penalties, which for "wgan" is the
    estimate of the Wasserstein distance and for a divergence that of the divergence; `critic_penalty`; and, where a
    logit says what the critic takes a sample for, `critic_accuracy`. Evaluation's loss is the critic's on rows that it
    was not trained on. Latents depend on the seed, the step and the process alone. Raises ValueError for settings that
    contradict one another, such as a penalty on the gradient of a critic with batch norm, whose gradient by one sample
    depends on the others.
    """

    def __init__(
        self,
        model: NoriaGANModel,
        args: TrainingArguments | None = None,
        *,
        objective: str = "non_saturating",
        penalty: str | None = None,
        penalty_weight: float | None = None,
        clip: float | None = None,
        spectral_weight: float = 0.0,
        n_critic: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = make_objective(objective)
        if clip is None:
            limited = penalty or spectral_weight or model.config.spectral_norm
            clip = CLIP if objective == "wgan" and not limited else 0.0
        self.penalty, self.penalty_weight = choose_penalty(penalty, penalty_weight)
        self.clip, self.spectral_weight = clip, spectral_weight
        for name, value in (("clip", clip), ("spectral_weight", spectral_weight)):
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, not {value}.")
        if penalty:
            refuse_batch_norm(model.critic, penalty)
        if objective == "wgan" and not (clip or penalty or spectral_weight or model.config.spectral_norm):
            raise ValueError(
                "nothing limits the slope of the critic, and its value would grow without end: give a `penalty`, "
                "`clip`, `spectral_weight`, or a model with `spectral_norm`."
            )
        if n_critic is None:
            n_critic = WGAN_CRITIC_STEPS if objective == "wgan" else 1
        if args is None:
            args = gan_arguments(
                "gan", objective, penalty or ("spectral_norm" if model.config.spectral_norm else None)
            )
        self.draws: tuple[int, str, int] = (-1, "", 0)
        super().__init__(model, args, critic=model.critic, n_critic=n_critic, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        # The model's own arguments are those of generation: a data set's images would be dropped as unknown to it.
        self._signature_columns = ["pixel_values", "labels", "label"]

    def random(self, turn: str) -> torch.Generator:
        """A generator for the next batch of this turn: resumed runs draw what uninterrupted ones do."""
        step, last_turn, count = self.draws
        fresh = (step, last_turn) != (self.state.global_step, turn)
        self.draws = (self.state.global_step, turn, 0 if fresh else count + 1)
        place = (self.args.seed, self.args.process_index, *self.draws)
        return torch.Generator().manual_seed(crc32(repr(place).encode()))

    def labels_of(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The batch's classes where the model has classes; else they are not read."""
        count = self.model.config.num_labels
        return check_labels(batch.get("labels"), count, len(batch["pixel_values"])) if count else None

    def generate(self, rows: int, labels: Tensor | None, random: torch.Generator) -> Tensor:
        latents = self.model.draw_latents(rows, random)
        return self.model.generator(latents, labels)

    def generator_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        labels = self.labels_of(batch)
        fake = self.generate(len(batch["pixel_values"]), labels, self.random("generator"))
        return {"loss": self.objective.generator(self.critic(fake, labels))}

    def critic_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        random, labels = self.random("critic"), self.labels_of(batch)
        real = batch["pixel_values"].to(self.model.dtype)
        with torch.no_grad():
            fake = self.generate(len(real), labels, random)
        terms = self.judge(real, fake, labels)
        if self.penalty is not None:
            terms["penalty"] = self.penalty(lambda points: self.critic(points, labels), real, fake, random)
            terms["loss"] = terms["loss"] + self.penalty_weight * terms["penalty"]
        if self.spectral_weight:
            terms["spectral"] = spectral_regularization(self.critic)
            terms["loss"] = terms["loss"] + self.spectral_weight * terms["spectral"]
        return terms

    def judge(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """What the critic loses on real samples and as many generated ones, and how often it is right."""
        real_logits, fake_logits = self.critic(real, labels), self.critic(fake, labels)
        loss = self.objective.critic(real_logits, fake_logits)
        terms = {"loss": loss, "value": -loss.detach()}
        if self.objective.threshold is not None:
            right = (real_logits > self.objective.threshold).float(), (fake_logits < self.objective.threshold).float()
            terms["accuracy"] = torch.cat(right).mean()
        return terms

    def after_critic_step(self) -> None:
        if self.clip:
            clip_weights(self.critic, self.clip)

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        batch = self._prepare_inputs(inputs)
        labels, real = self.labels_of(batch), batch["pixel_values"].to(self.model.dtype)
        with self.accelerator.autocast():
            fake = self.generate(len(real), labels, self.random("evaluation"))
            return self.judge(real, fake, labels)["loss"], None, None


def choose_penalty(name: str | None, weight: float | None) -> tuple[Penalty | None, float]:
    """The penalty called `name` and its weight. Raises ValueError for an unknown name, and for a weight below 0."""
    if name is None:
        if weight is not None:
            raise ValueError(
                f"`penalty_weight` ({weight}) belongs to a `penalty`: choose from {', '.join(PENALTIES)}."
            )
        return None, 0.0
    if name not in PENALTIES:
        raise ValueError(f"unknown penalty {name!r}: choose from {', '.join(PENALTIES)}.")
    weight = PENALTY_WEIGHTS[name] if weight is None else weight
    if weight < 0:
        raise ValueError(f"`penalty_weight` must be at least 0, not {weight}.")
    return PENALTIES[name], weight


def refuse_batch_norm(critic: nn.Module, penalty: str) -> None:
    """Raises ValueError where a critic has batch norm: its gradient by one sample is then not that sample's alone."""
    found = next((name for name, layer in critic.named_modules() if isinstance(layer, _BatchNorm)), None)
    if found is not None:
        raise ValueError(
            f"the penalty {penalty!r} is on the gradient at each sample, and batch norm (the critic's {found}) mixes "
            'samples: give the model `critic_norm="layer"` or "none".'
        )
