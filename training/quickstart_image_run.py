"""A run of `noria quickstart-image`: both stages one after the other, each stopped and taken up again at will."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from ..configuration.vqgan import NoriaVQGANConfig
from ..configuration.vqgan_prior import NoriaVQGANPriorConfig
from ..data.emoji import CATEGORIES, Emoji, emoji, split
from ..image_processing.vqgan import NoriaVQGANImageProcessor
from ..modeling.vqgan import NoriaVQGANModel
from ..modeling.vqgan_prior import NoriaVQGANPriorForImageGeneration
from .architecture import causal_config
from .folder import write_record
from .image_measures import encode, measure_first_stage, prior_loss, unigram_baseline
from .pictures import CodedPictures, ShiftedPictures
from .progress import ProgressBar
from .quickstart_image_history import ImageHistory
from .quickstart_image_settings import SIDE, ImageSettings
from .run import training_arguments
from .settings import Settings
from .trainer import BudgetCallback, BudgetTrainer
from .vqgan_trainer import VQGANTrainer

REACH = 1
# The share of the first stage's time in which the decoder sees latents themselves: colours and edges are learned
# sooner so, and the codebook follows as running means of latents.
WARM_UP = 0.2
# What suits maps of codes: places that are known absolutely, and forgetting, since there are few pictures.
FAVOURED = {"linear_transformer": {"rotary": "none", "position_encoding": "sinusoidal", "dropout": 0.1}}
KEEP_PROBABILITY = 0.9


class BudgetVQGANTrainer(BudgetTrainer, VQGANTrainer):
    """VQGANTrainer by the clock, which begins without quantization."""

    def generator_losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.budget.spent >= WARM_UP:
            return super().generator_losses(batch)
        pixels = batch["pixel_values"]
        reconstruction = self.model.decode(self.model.encode(pixels).latents)
        loss = self.losses.reconstruction(pixels, reconstruction)["reconstruction_loss"].mean()
        return {"loss": loss, "reconstruction_loss": loss}


@dataclass
class ImageRun:
    """The models of a run with the pictures and what was measured; the prior is made once the first stage is done."""

    settings: ImageSettings
    vqgan: NoriaVQGANModel
    train: list[Emoji]
    held_out: list[Emoji]
    history: ImageHistory
    prior: NoriaVQGANPriorForImageGeneration | None = None

    @property
    def finished(self) -> bool:
        """Whether both stages are trained."""
        return self.history.prior.finished

    def fit(
        self, scratch: Path, checkpoint: Path | None, stop: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        """Trains what is left of both stages; a checkpoint lies in `scratch` where `stop` has ended one of them."""
        if not self.history.vqgan.finished:
            self.fit_vqgan(scratch, checkpoint, stop)
            checkpoint = None
            say(self.history.reconstruction(len(self.held_out), self.settings.codes))
        if self.history.vqgan.finished:
            self.fit_prior(scratch, checkpoint, stop)
            say(self.history.losses())

    def fit_vqgan(self, scratch: Path, checkpoint: Path | None, stop: Callable[[], bool]) -> None:
        rows = ShiftedPictures(stack(self.train), REACH)
        # In minutes a discriminator learns too little to be of use.
        losses = {"discriminator": None, "perceptual": "none", "losses": {"discriminator_weight": 0.0}}
        self.train_stage("vqgan", self.vqgan, rows, scratch, checkpoint, stop, BudgetVQGANTrainer, **losses)
        measures = measure_first_stage(self.vqgan, stack(self.train), stack(self.held_out))
        self.history.vqgan.measures.update(measures)

    def fit_prior(self, scratch: Path, checkpoint: Path | None, stop: Callable[[], bool]) -> None:
        self.prior = make_prior(self.settings, self.vqgan)
        train, held_out = (
            CodedPictures(encode(self.vqgan, stack(side)), torch.tensor([one.category for one in side]))
            for side in (self.train, self.held_out)
        )
        measures = self.history.prior.measures
        if not measures:
            measures["unigram"] = unigram_baseline(train.codes, held_out.codes, self.settings.codes)
            measures["before"] = prior_loss(self.prior, held_out)
        self.train_stage("prior", self.prior, train, scratch, checkpoint, stop)
        measures["after"] = prior_loss(self.prior, held_out)

    def train_stage(
        self,
        name: str,
        model: PreTrainedModel,
        rows: Dataset,
        scratch: Path,
        checkpoint: Path | None,
        stop: Callable[[], bool],
        kind: type[BudgetTrainer] = BudgetTrainer,
        **more: Any,
    ) -> None:
        """Trains one stage until its budget is spent or a stop is requested."""
        stage = getattr(self.history, name)
        budget = self.settings.budget(name, stage.seconds)
        arguments = stage_arguments(name, self.settings, scratch)
        with ProgressBar(budget, arguments.per_device_train_batch_size, "pictures", f"training {name}") as bar:
            callbacks = [BudgetCallback(budget, stop, bar.report)]
            trainer = kind(model, arguments, train_dataset=rows, callbacks=callbacks, budget=budget, **more)
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        stage.finished, stage.steps, stage.seconds = budget.spent >= 1, budget.step, budget.elapsed
        stage.curve = [(e["seconds"], e["loss"]) for e in trainer.state.log_history if "loss" in e]

    def save(self, folder: Path) -> None:
        """Writes each stage as a folder of its own, the history, and the record by which a later run goes on."""
        for name, model in (("vqgan", self.vqgan), ("prior", self.prior)):
            if model is not None:
                model.save_pretrained(folder / name)
                NoriaVQGANImageProcessor.for_model(model).save_pretrained(folder / name)
        self.history.save(folder / "history.json")
        write_record(folder, asdict(self.settings), self.finished, asdict(self.history))


def prepare(settings: ImageSettings, history: ImageHistory, begun: Path | None = None) -> ImageRun:
    """The pictures and a first stage: a fresh one, or the one in the folder `begun` where that is trained."""
    train, held_out = split(emoji())
    if history.vqgan.finished and begun is not None:
        vqgan = NoriaVQGANModel.from_pretrained(begun / "vqgan", dtype=torch.float32)
    else:
        set_seed(settings.seed)
        vqgan = NoriaVQGANModel(first_stage(settings))
    return ImageRun(settings, vqgan, train, held_out, history)


def first_stage(settings: ImageSettings) -> NoriaVQGANConfig:
    """Codes for 4x4 pixels each, in a codebook of running means, from which no code drops out for long."""
    return NoriaVQGANConfig(
        vocab_size=settings.codes,
        hidden_size=settings.hidden_size,
        num_hidden_layers=1,
        channel_multipliers=(1, 2, 4),
        attention_resolutions=(),
        image_size=SIDE,
        latent_channels=4 * settings.hidden_size,
        code_size=16,
        # As many channels in a group as published: a norm for each channel alone would lose a picture's colours.
        norm_num_groups=gcd(4, settings.hidden_size),
        quantizer="ema",
        ema_decay=0.97,
        revive_after=20,
    )


def make_prior(settings: ImageSettings, vqgan: NoriaVQGANModel) -> NoriaVQGANPriorForImageGeneration:
    """A fresh causal language model over the codes of `vqgan`, with the category as its first token."""
    # Seeded anew, so that a run that was interrupted before begins its second stage as any other.
    set_seed(settings.seed)
    fields = {"hidden_size": settings.prior_hidden_size, "num_hidden_layers": settings.prior_layers}
    fields |= FAVOURED.get(settings.prior, {})
    ids = settings.codes + len(CATEGORIES)
    config = NoriaVQGANPriorConfig(
        prior_config=causal_config(settings.prior, vocab_size=ids, **fields),
        vqgan_config=vqgan.config.to_dict(),
        condition="class",
        condition_offset=settings.codes,
        keep_probability=KEEP_PROBABILITY,
        id2label=dict(enumerate(CATEGORIES)),
        label2id={name: number for number, name in enumerate(CATEGORIES)},
    )
    prior = NoriaVQGANPriorForImageGeneration(config)
    prior.vqgan.load_state_dict(vqgan.state_dict())
    return prior


def stage_arguments(name: str, settings: ImageSettings, scratch: Path) -> TrainingArguments:
    """The Trainer's arguments of a stage: those of the text's quickstart, and for the first stage no decay."""
    front = "" if name == "vqgan" else "prior_"
    shape = {field: getattr(settings, front + field) for field in ("batch", "learning_rate")}
    common = Settings(steps=settings.steps, seed=settings.seed, precision="float32", **shape)
    arguments = training_arguments(common, scratch)
    if name == "vqgan":
        arguments.weight_decay, arguments.adam_beta2 = 0.0, 0.99
    return arguments


def stack(pictures: list[Emoji]) -> torch.Tensor:
    """The pixels of all pictures, (n 3 h w) of uint8."""
    return torch.stack([picture.pixels for picture in pictures])
