"""VQGAN's first stage, trained: Esser, Rombach and Ommer 2021 (arXiv:2012.09841)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..configuration.vqgan import NoriaVQGANConfig
from ..modeling.image.patch_discriminator import PatchDiscriminator
from ..modeling.vqgan import NoriaVQGANModel
from .adversarial import AdversarialTrainer
from .adversarial_schedule import AdversarialSchedule
from .codebook_usage import CodebookUsage
from .image_quality import peak_signal_to_noise
from .perceptual import make_perceptual
from .vqgan_losses import VQGANLosses


class EpochUsage(TrainerCallback):
    """Tells a VQGANTrainer when an epoch ends."""

    def __init__(self, trainer: "VQGANTrainer") -> None:
        self.trainer = trainer

    def on_epoch_end(self, *args: object, **kwargs: object) -> None:
        self.trainer.log_usage()


def vqgan_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """TrainingArguments with what VQGAN was published with: Adam of betas 0.5 and 0.9, a constant learning rate of
    4.5e-6 for each image of a process's step, no decay, no clipping; `changes` come on top.
    """
    batch = changes.get("per_device_train_batch_size", 8) * changes.get("gradient_accumulation_steps", 1)
    published = {
        "learning_rate": 4.5e-6 * batch,
        "adam_beta1": 0.5,
        "adam_beta2": 0.9,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
    }
    return TrainingArguments(str(output_dir), **{**published, **changes})


def default_discriminator(config: NoriaVQGANConfig) -> PatchDiscriminator:
    """Patches of 70 pixels, as published, or smaller ones where the images do not hold one."""
    layers = max((n for n in (1, 2, 3) if 3 * 2**n <= config.image_size), default=1)
    return PatchDiscriminator(config.num_channels, num_hidden_layers=layers)


def require_limited(discriminator: nn.Module, penalty: str | None) -> None:
    """Raises ValueError where nothing keeps the slope of a Wasserstein critic from growing without end."""
    if not penalty and not any(is_parametrized(module) for module in discriminator.modules()):
        raise ValueError('the objective "wgan" takes a `penalty`, or a discriminator with `spectral_norm`.')


class VQGANTrainer(AdversarialTrainer):
    """Trains a NoriaVQGANModel on rows {"pixel_values": (c h w)} against a discriminator of patches.

    model: a NoriaVQGANModel. args: by default `vqgan_arguments("vqgan")`.
    perceptual: VGG16's weights as a file (LPIPS), "random_features" or "none", see `make_perceptual`; or a module. It
    has no default: which one was used is a part of what a number means.
    discriminator: by default a PatchDiscriminator for the model's channels; None for no adversarial loss, which is the
    default, and the only choice, where the model's task is segmentation.
    schedule: when the discriminator joins; by default after a quarter of the run, in the course of another tenth.
    temperature: the Gumbel softmax's at each step, where the model has one.
    losses: further settings of `VQGANLosses`, such as objective="wgan", penalty="gradient", delta=1e-6.
    Else it is an AdversarialTrainer: checkpoints hold the discriminator, and `save_model` writes the model alone.
    Evaluation tells reconstruction and use of the codebook over the whole data set and all processes; the use
    while training is logged at the end of each epoch. Raises ValueError for settings that do not fit the model.
    """

    def __init__(
        self,
        model: NoriaVQGANModel,
        args: TrainingArguments | None = None,
        *,
        perceptual: nn.Module | str | Path,
        discriminator: nn.Module | str | None = "default",
        schedule: AdversarialSchedule | None = None,
        temperature: Callable[[int], float] | None = None,
        losses: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = model.config
        if discriminator == "default":
            discriminator = default_discriminator(config) if config.task == "image" else None
        if discriminator is not None and config.task != "image":
            raise ValueError(f"a discriminator judges images: the model's task is {config.task!r}, so give None.")
        if discriminator is not None and (losses or {}).get("objective") == "wgan":
            require_limited(discriminator, (losses or {}).get("penalty"))
        if temperature is not None and config.quantizer != "gumbel":
            raise ValueError(f'a temperature belongs to the quantizer "gumbel", not to {config.quantizer!r}.')
        args = vqgan_arguments("vqgan") if args is None else args
        super().__init__(model, args, critic=discriminator, **kwargs)
        if not isinstance(perceptual, nn.Module):
            perceptual = make_perceptual(perceptual, config.num_channels)
        self.losses = VQGANLosses(
            perceptual=None if perceptual is None else perceptual.to(self.args.device),
            codebook_weight=config.codebook_weight,
            task=config.task,
            average=lambda gradient: self.accelerator.reduce(gradient, reduction="mean"),
            **(losses or {}),
        )
        self.schedule = schedule or AdversarialSchedule()
        self.temperature = temperature
        self.usage, self.evaluated = CodebookUsage(config.num_codes), CodebookUsage(config.num_codes)
        self.measured: dict[str, list[Tensor]] = {}
        self.add_callback(EpochUsage(self))

    def begin(self) -> None:
        self.probed = not self.critic_learns
        self.schedule.begin(self.state.max_steps)
        self.usage.clear()
        super().begin()

    def generator_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        step = self.state.global_step
        self.probe(batch["pixel_values"])
        extra = {}
        if self.temperature is not None:
            self.model.quantizer.temperature = extra["temperature"] = self.temperature(step)
        output = self.model(pixel_values=batch["pixel_values"])
        self.usage.add(output.codes)
        batch["reconstruction"] = output.reconstruction.detach()
        terms = self.losses.generator(
            batch["pixel_values"],
            output.reconstruction,
            output.quantizer_loss,
            self.model.last_layer,
            self.critic,
            self.schedule.factor(step) if self.critic_learns else 0.0,
        )
        return {**terms, "perplexity": output.perplexity, **extra}

    def probe(self, pixels: Tensor) -> None:
        """Lets a discriminator that cannot read the images fail in the first step, not when it joins."""
        if not self.probed:
            with torch.no_grad():
                self.critic.eval()(pixels[:1])
            self.critic.train()
            self.probed = True

    def critic_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if not self.schedule.started(self.state.global_step) or not self.losses.discriminator_weight:
            return {}
        return self.losses.critic(batch["pixel_values"], batch["reconstruction"], self.critic)

    def after_step(self) -> None:
        self.schedule.observe(self.state.global_step, self.terms.of_step["reconstruction_loss"])

    def extra_state(self) -> dict[str, Any]:
        return {"schedule": self.schedule.state(), "usage": self.total_usage().tolist()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state(state["schedule"])
        if self.accelerator.is_main_process:
            self.usage.counts.copy_(torch.tensor(state["usage"]))

    def total_usage(self) -> Tensor:
        return self.accelerator.reduce(self.usage.counts.to(self.args.device), reduction="sum")

    def log_usage(self) -> None:
        """Logs how the codebook was used in the epoch that ends here."""
        measures = self.usage.measures(self.total_usage())
        self.usage.clear()
        if measures:
            self.log({f"train_{name}": value for name, value in measures.items()})

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self.evaluated.clear()
        self.measured = {}
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        measures = {name: torch.cat(values).mean().item() for name, values in self.measured.items()}
        measures |= self.evaluated.measures()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measures.items()})
        return output

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss without its adversarial part; everything else is measured for each image and over all processes."""
        pixels = self._prepare_inputs(inputs)["pixel_values"]
        with self.accelerator.autocast():
            output = model(pixel_values=pixels)
            measures = self.losses.reconstruction(pixels, output.reconstruction)
        self.evaluated.add(self.accelerator.gather_for_metrics(output.codes))
        quantizer_loss = self.model.config.codebook_weight * output.quantizer_loss
        loss = measures["reconstruction_loss"].mean() + quantizer_loss
        if self.model.config.task == "image":
            measures["psnr"] = peak_signal_to_noise(output.reconstruction, pixels)
        for name, value in measures.items():
            self.measured.setdefault(name, []).append(self.accelerator.gather_for_metrics(value).cpu())
        return loss, None, None
