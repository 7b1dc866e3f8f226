"""Trains any causal language model of noria on the embedded Chinese classics, and measures it on held-out ones.

    python examples/train_lm.py retnet rwkv:version=7
    python examples/train_lm.py mamba --carry --gradient-checkpointing
    python examples/train_lm.py --all --seeds 3

Every model has as many parameters as a transformer of the given width and depth with a head of its own, sees the same
rows in the same order, and is measured in bits per character of the same texts. Texts are packed: rows hold several,
and none sees another. With --carry a text that a row cuts off goes on in the next step, from the state that the model
had there, and chapters are read as one text; gradients end at the cut. What was measured in the output folder with the
same settings is not measured again.
"""

import json
import math
import statistics
import sys
from argparse import Namespace
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from transformers.utils import logging

from noria import param_groups
from noria.cli import Parser
from noria.data.texts import Record, classics, split
from noria.modeling.mixers.s4 import KERNELS
from noria.modeling.rwkv import VERSIONS
from noria.tokenization.characters import character_tokenizer
from noria.training.architecture import causal_architectures, causal_config
from noria.training.budget import Budget
from noria.training.corpus import encode, held_out_loss, prompt, unigram_baseline
from noria.training.progress import ProgressBar
from noria.training.run import training_arguments
from noria.training.settings import PRECISIONS, Settings
from noria.training.trainer import BudgetCallback, BudgetTrainer

VARIANTS = {
    "rwkv": [f"rwkv:version={version}" for version in VERSIONS],
    "s4": [f"s4:kernel={kernel}" for kernel in KERNELS],
}
WIDTH_STEP = 8


@cache
def corpus() -> tuple[list[Record], list[Record], PreTrainedTokenizerBase]:
    """The records to train on, those held out, and the tokenizer of all their characters."""
    records = classics()
    return *split(records), character_tokenizer(prompt(record.genre) + record.text for record in records)


def chapters(records: Sequence[Record]) -> list[Record]:
    """Passages of one title that follow one another, as one text each."""
    parts = (list(part) for _, part in groupby(records, lambda record: (record.genre, record.title)))
    return [Record(p[0].genre, p[0].title, p[0].author, "\n".join(record.text for record in p)) for p in parts]


class Packed(Dataset):
    """Texts one after another, cut into rows of `length` tokens; positions restart where another text begins.

    The order of the texts is drawn from `seed`. lanes: rows i, i + lanes, i + 2 lanes, ... follow one another in the
    text, and positions count on from each to the next; None for rows that stand alone. Raises ValueError where the
    texts do not fill one row of each lane.
    """

    def __init__(self, texts: Sequence[Sequence[int]], length: int, seed: int, lanes: int | None = None) -> None:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        stream = torch.tensor([token for index in order for token in texts[index]])
        places = torch.cat([torch.arange(len(texts[index])) for index in order])
        rows = len(stream) // length
        lanes = lanes or rows
        if rows < max(lanes, 1):
            raise ValueError(f"{len(stream)} tokens of text do not fill {max(lanes, 1)} rows of {length}")
        size = rows // lanes * length
        stream, places = (x[: lanes * size].view(lanes, size) for x in (stream, places))
        places = torch.minimum(places, torch.arange(size))
        self.ids, self.positions = (
            x.unfold(1, length, length).transpose(0, 1).flatten(0, 1) for x in (stream, places)
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "position_ids": self.positions[index], "labels": self.ids[index]}


class CarryTrainer(BudgetTrainer):
    """Each step begins with the states in which the step before has ended, without their gradients."""

    carried = None

    def _get_train_sampler(self, *args: object, **kwargs: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], *args: object, **kwargs: object
    ) -> Tensor:
        outputs = model(**inputs, past_key_values=self.carried, use_cache=True)
        self.carried = outputs.past_key_values.fork()
        return outputs.loss


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """`rwkv:version=7,hidden_act=relu` as the architecture's name and its fields."""
    architecture, _, rest = name.partition(":")
    fields: dict[str, Any] = {}
    for pair in rest.split(",") if rest else []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{name!r} must look like name or name:field=value,field=value")
        try:
            fields[field] = json.loads(value)
        except json.JSONDecodeError:
            fields[field] = value
    return architecture, fields


def every_architecture() -> list[str]:
    """All causal models by name, those of several versions once for each."""
    return [variant for name in causal_architectures() for variant in VARIANTS.get(name, [name])]


def parameters(config: PreTrainedConfig) -> int:
    """How many parameters the model has, without making them."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def shaped(name: str, width: int, layers: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration with as many parameters as a transformer of this size has, which are 12 d² in each layer.

    The number of layers is chosen first, at the given width, then the width in steps of eight.
    """
    architecture, fields = parse(name)
    fields = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **fields}
    fields |= {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}

    def config(hidden_size: int, depth: int) -> PreTrainedConfig:
        return causal_config(architecture, hidden_size=hidden_size, num_hidden_layers=depth, **fields)

    wanted = 2 * len(tokenizer) * width + 12 * layers * width**2
    one, two = (parameters(config(width, depth)) for depth in (1, 2))
    depth = max(1, round(1 + (wanted - one) / (two - one)))
    widths = range(max(WIDTH_STEP, width // 2 // WIDTH_STEP * WIDTH_STEP), 2 * width, WIDTH_STEP)
    # More width never means fewer parameters, so that the nearest is found by halving.
    above = bisect_left(widths, wanted, key=lambda size: parameters(config(size, depth)))
    near = (config(size, depth) for size in widths[max(above - 1, 0) : above + 1])
    return min(near, key=lambda found: abs(parameters(found) - wanted))


def train(model: PreTrainedModel, rows: Packed, settings: Settings, options: Namespace, scratch: str) -> Budget:
    """Trains the model in place; what it took."""
    arguments = training_arguments(settings, Path(scratch))
    if options.gradient_checkpointing:
        arguments.gradient_checkpointing = True
        arguments.gradient_checkpointing_kwargs = {"use_reentrant": False}  # a carried state asks for that
    groups = param_groups(model, arguments.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    budget = Budget(settings.seconds, settings.steps)
    with ProgressBar(budget, settings.batch * settings.length) as bar:
        trainer = (CarryTrainer if options.carry else BudgetTrainer)(
            model,
            arguments,
            train_dataset=rows,
            callbacks=[BudgetCallback(budget, report=bar.report)],
            optimizers=(optimizer, None),
            budget=budget,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # measured in the precision that it keeps
    return budget


def measure(name: str, settings: Settings, options: Namespace) -> dict[str, Any]:
    """One model under one seed: its shape, its speed, and bits per character of the held-out texts."""
    known, held_out, tokenizer = corpus()
    config = shaped(name, settings.hidden_size, settings.layers, tokenizer)
    set_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if options.carry and model.model.grows:
        raise ValueError(f"--carry wants a state of constant size, which {name} has not: it caches every key")
    texts = encode(chapters(known) if options.carry else known, tokenizer)
    rows = Packed(texts, settings.length, settings.seed, settings.batch if options.carry else None)
    with TemporaryDirectory() as scratch:
        budget = train(model, rows, settings, options, scratch)
    bits = held_out_loss(model, tokenizer, held_out) / math.log(2)
    shape = {"layers": config.num_hidden_layers, "width": config.hidden_size, "parameters": model.num_parameters()}
    speed = budget.step * settings.batch * settings.length / budget.elapsed
    return {"architecture": name, "seed": settings.seed, **shape, "bits": bits, "tokens_per_second": speed}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """All runs as Markdown, the fewest bits first: the mean over the seeds, and its spread where there are several."""
    known, held_out, _ = corpus()
    lines = []
    for name in {run["architecture"] for run in runs}:
        found = [run for run in runs if run["architecture"] == name]
        bits, speeds = ([run[key] for run in found] for key in ("bits", "tokens_per_second"))
        mean, first = statistics.mean(bits), found[0]
        spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
        shape = f"{first['layers']} × {first['width']} | {first['parameters'] / 1e6:.2f} M"
        lines.append((mean, f"| {name} | {shape} | {mean:.3f}{spread} | {statistics.median(speeds):,.0f} |"))
    unigram = unigram_baseline(known, held_out) / math.log(2)
    lines.append((unigram, f"| frequencies of characters | | | {unigram:.3f} | |"))
    head = "| architecture | layers × width | parameters | bits per character | tokens/s in training |"
    return "\n".join([head, "|---|---|---|---|---|", *(line for _, line in sorted(lines))])


def run(options: Namespace) -> None:
    """Measures what the output folder lacks, and shows everything that is there."""
    names = every_architecture() if options.all else options.architectures
    if not names or (options.all and options.architectures):
        raise ValueError("name architectures, or say --all")
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    fields = {name: value for name, value in vars(options).items() if name in Settings.__dataclass_fields__}
    settings = {**asdict(Settings(**fields)), "carry": options.carry}
    settings = {name: value for name, value in settings.items() if name not in ("architecture", "seconds", "seed")}
    options.output.mkdir(parents=True, exist_ok=True)
    path, results = options.output / "train_lm.json", {"settings": settings, "runs": []}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    if results["settings"] != settings:
        raise ValueError(f"{path} was measured with other settings: {results['settings']}; choose another --output")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    done = {(one["architecture"], one["seed"]) for one in results["runs"]}
    for seed, name in product(range(options.seeds), names):
        if (name, seed) not in done:
            results["runs"].append(found := measure(name, Settings(seed=seed, **fields), options))
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}, seed {seed}: {found['bits']:.3f} bits per character", flush=True)
    print(table(results["runs"]))


def main(arguments: Sequence[str] | None = None) -> int:
    default = Settings()
    parser = Parser(prog="train_lm.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("architectures", nargs="*", metavar="NAME", help="as in `retnet` or `rwkv:version=7`")
    parser.add_argument("--all", action="store_true", help="every causal language model of noria")
    parser.add_argument("--hidden-size", type=int, default=default.hidden_size, help="of the transformer (192)")
    parser.add_argument("--layers", type=int, default=default.layers, help="of the transformer (3)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each training (1000)")
    parser.add_argument("--batch", type=int, default=default.batch, help="rows in a step (4)")
    parser.add_argument("--length", type=int, default=default.length, help="characters in a row (128)")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="at its peak (2e-3)")
    parser.add_argument("--precision", choices=PRECISIONS, default=default.precision, help="of the matrix products")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="compute twice, keep less in memory")
    parser.add_argument("--carry", action="store_true", help="go on with texts that a row has cut off")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each is trained (1)")
    parser.add_argument("--output", type=Path, default=Path("noria-train-lm"), metavar="FOLDER")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"train_lm.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
