"""Trains a VQGAN with everything that belongs to it on a folder of images, and then a prior on its codes.

    python examples/train_vqgan.py --images photos --output vqgan --perceptual vgg16.pth
    accelerate launch examples/train_vqgan.py --images photos --output vqgan --perceptual random_features
    python examples/train_vqgan.py --images photos --output vqgan --stage prior

Meant for an accelerator and hours; --quick shows in a minute on a CPU that all parts fit, on the embedded emoji where
no folder is named. The first stage learns from pixels, from features (LPIPS, where VGG16's weights are given) and from
a discriminator that joins after a quarter of the run. A twentieth of the images is held out. Each stage goes on from
its last checkpoint in the output folder when it is started again, and the output holds `vqgan` and `prior` for
from_pretrained, with grids of reconstructions and of new images beside them.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from noria import NoriaVQGANConfig, NoriaVQGANModel, NoriaVQGANPriorConfig, NoriaVQGANPriorForImageGeneration
from noria.cli import Parser
from noria.data.emoji import emoji
from noria.image_processing.folder import ImageFolder
from noria.image_processing.vqgan import NoriaVQGANImageProcessor
from noria.modeling.image.patch_discriminator import PatchDiscriminator
from noria.training.adversarial_schedule import AdversarialSchedule
from noria.training.architecture import causal_config
from noria.training.picture_grid import draw_grid
from noria.training.pictures import ShiftedPictures
from noria.training.vqgan_trainer import VQGANTrainer, vqgan_arguments

EVERY, COLUMNS = 20, 8


@dataclass(frozen=True)
class Recipe:
    """The sizes of both stages, and how long they are trained."""

    size: int = 256
    codes: int = 1024
    hidden_size: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    code_size: int = 256
    discriminator_width: int = 64
    prior_width: int = 768
    prior_layers: int = 12
    steps: int = 100_000
    prior_steps: int = 50_000
    batch: int = 12
    prior_batch: int = 32


QUICK = Recipe(32, 32, 8, (1, 2, 2), 8, 8, 32, 1, 4, 4, 4, 4)


def first_stage(recipe: Recipe) -> NoriaVQGANConfig:
    """The published architecture at f16; codes that nobody uses are revived."""
    latent = recipe.size // 2 ** (len(recipe.channel_multipliers) - 1)
    return NoriaVQGANConfig(
        vocab_size=recipe.codes,
        hidden_size=recipe.hidden_size,
        channel_multipliers=recipe.channel_multipliers,
        attention_resolutions=(latent,),
        image_size=recipe.size,
        latent_channels=recipe.code_size,
        code_size=recipe.code_size,
        legacy_commitment=False,
        revive_after=100,
    )


def read_images(options: Namespace, recipe: Recipe) -> tuple[Dataset, Dataset]:
    """Rows {"pixel_values"} to train on and held out, each twentieth of all: of the folder, or of the emoji."""
    if options.images is None:
        rows: Dataset = ShiftedPictures(torch.stack([one.pixels for one in emoji()]))
    else:
        rows = ImageFolder(options.images, NoriaVQGANImageProcessor.for_model(first_stage(recipe)))
    count = len(rows)
    if count < EVERY:
        raise ValueError(f"{count} images are too few to hold out each {EVERY}th: at least {EVERY} are wanted")
    held_out = range(EVERY - 1, count, EVERY)
    train = [index for index in range(count) if index % EVERY != EVERY - 1]
    return Subset(rows, train), Subset(rows, held_out[: 2 * COLUMNS] if options.quick else held_out)


def train_first_stage(options: Namespace, recipe: Recipe, train: Dataset, held_out: Dataset) -> None:
    """Trains and saves `vqgan`, and draws reconstructions.png."""
    scratch, target = options.output / "vqgan-checkpoints", options.output / "vqgan"
    set_seed(options.seed)
    model = NoriaVQGANModel(first_stage(recipe))
    arguments = vqgan_arguments(
        scratch,
        max_steps=options.steps or recipe.steps,
        per_device_train_batch_size=recipe.batch,
        learning_rate=options.learning_rate,
        **both_stages(options),
    )
    trainer = VQGANTrainer(
        model,
        arguments,
        perceptual=options.perceptual,
        discriminator=PatchDiscriminator(3, recipe.discriminator_width, 2 if options.quick else 3),
        schedule=AdversarialSchedule(start=0.25, warmup=0.1),
        losses={"objective": options.objective},
        ema_decay=0.5 if options.quick else 0.999,
        train_dataset=train,
        eval_dataset=held_out,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(scratch))
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model(str(target))
    if trainer.is_world_process_zero():
        NoriaVQGANImageProcessor.for_model(model).save_pretrained(target)
        pixels = stack(held_out, 2 * COLUMNS)
        trained = NoriaVQGANModel.from_pretrained(target).eval()
        pairs = zip(pixels.split(COLUMNS), reconstruct(trained, pixels).split(COLUMNS), strict=True)
        draw_grid([row for pair in pairs for row in pair], options.output / "reconstructions.png", scale=1)


def both_stages(options: Namespace) -> dict[str, Any]:
    """What both stages tell their Trainers."""
    return {
        "bf16": options.bf16,
        "use_cpu": options.quick,
        "logging_steps": 1 if options.quick else 50,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "save_steps": 0.25,
        "save_total_limit": 2,
        "seed": options.seed,
        "dataloader_num_workers": options.workers,
    }


def train_prior(options: Namespace, recipe: Recipe, train: Dataset, held_out: Dataset) -> None:
    """Trains and saves `prior`, which reads the images through the first stage, and draws samples.png."""
    scratch, target = options.output / "prior-checkpoints", options.output / "prior"
    vqgan = NoriaVQGANModel.from_pretrained(options.output / "vqgan")
    sizes = {"hidden_size": recipe.prior_width, "num_hidden_layers": recipe.prior_layers}
    config = NoriaVQGANPriorConfig(
        prior_config=causal_config(options.prior, vocab_size=vqgan.config.num_codes + 1, **sizes),
        vqgan_config=vqgan.config.to_dict(),
        condition_offset=vqgan.config.num_codes,
        keep_probability=0.95,
    )
    set_seed(options.seed)
    model = NoriaVQGANPriorForImageGeneration(config)
    model.vqgan.load_state_dict(vqgan.state_dict())
    arguments = TrainingArguments(
        str(scratch),
        max_steps=options.steps or recipe.prior_steps,
        per_device_train_batch_size=recipe.prior_batch,
        per_device_eval_batch_size=recipe.prior_batch,
        learning_rate=3e-4,
        adam_beta2=0.95,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        prediction_loss_only=True,
        report_to="none",
        **both_stages(options),
    )
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=held_out)
    trainer.train(resume_from_checkpoint=last_checkpoint(scratch))
    trainer.save_model(str(target))
    if trainer.is_world_process_zero():
        NoriaVQGANImageProcessor.for_model(model).save_pretrained(target)
        trained = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
        images = trained.generate_images(batch_size=2 * COLUMNS, seed=options.seed, top_k=recipe.codes // 4)
        draw_grid(images.float().cpu().split(COLUMNS), options.output / "samples.png", scale=1)


@torch.no_grad()
def reconstruct(model: NoriaVQGANModel, pixels: Tensor) -> Tensor:
    return torch.cat([model.decode_codes(model.encode(one[None]).codes) for one in pixels])


def stack(rows: Dataset, count: int) -> Tensor:
    """The pixels of the first `count` rows, or of all, in whole rows of the grid where there are enough."""
    count = min(count, len(rows))
    return torch.stack([rows[index]["pixel_values"] for index in range(count)])


def last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def run(options: Namespace) -> None:
    recipe = QUICK if options.quick else Recipe()
    if options.images is None and not options.quick:
        raise ValueError("name a folder of images with --images; --quick does without, on the embedded emoji")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}")
    rows = read_images(options, recipe)
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(rows[0])} images to train on, {len(rows[1])} held out", flush=True)
    if options.stage in ("vqgan", "both"):
        train_first_stage(options, recipe, *rows)
    if options.stage in ("prior", "both"):
        train_prior(options, recipe, *rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="train_vqgan.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="with images in it or below")
    parser.add_argument("--output", type=Path, default=Path("noria-train-vqgan"), metavar="FOLDER")
    parser.add_argument("--stage", choices=("vqgan", "prior", "both"), default="both", help="what to train (both)")
    parser.add_argument(
        "--perceptual", default="random_features", help="file of VGG16's weights, or a name (%(default)s)"
    )
    parser.add_argument("--objective", default="hinge", help="the discriminator's (hinge)")
    parser.add_argument("--learning-rate", type=float, default=5.4e-5, help="of the first stage (5.4e-5)")
    parser.add_argument("--prior", default="retnet", help="a causal model that `noria list` shows (retnet)")
    parser.add_argument("--steps", type=int, help="of each stage (100000 and 50000)")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny models, four steps, on the CPU")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"train_vqgan.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
