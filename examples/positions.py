"""Which position encodings let a model read texts longer than those it was trained on?

Trains the same tiny masked language model with each position encoding of RoFormer on rows of 64 characters of the
embedded classics, then reads held-out text in rows of 64, 128, 256 and 512. Sizes, steps, batches and masks are the
same for all. So are the hidden characters at every length: only how much text surrounds them changes. All of it takes
about 25 minutes on one core; `--encodings rotary alibi --seeds 1` takes two of them, once each. Results gather in
the output folder; what was measured there with the same budget is not measured again.
"""

import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from positions_chart import LENGTHS, report
from torch import Tensor
from torch.nn.functional import cross_entropy

from noria import NoriaRoFormerConfig, NoriaRoFormerForMaskedLM
from noria.cli import Parser
from noria.configuration.roformer import PositionName
from noria.data.texts import classics, split
from noria.tokenization.characters import SPECIAL_TOKENS, character_tokenizer
from noria.training.budget import Budget
from noria.training.corpus import Blocks, encode

# All but xPos, which has a meaning from left to right alone.
VARIANTS: dict[str, Any] = {name: {"position_encoding": name} for name in get_args(PositionName) if name != "xpos"}
# Linear attention can rotate both sums, or the numerator alone; 1 + cos stays positive where both are rotated.
VARIANTS["linear_both"] = {"attention": "linear", "rotary": "both"}
VARIANTS["linear_numerator"] = {"attention": "linear", "rotary": "numerator"}
VARIANTS["linear_cosine"] = {"attention": "linear", "rotary": "both", "feature_map": "cosine"}
# Tables and clipped distances end at the trained length, so that nothing untrained is ever read.
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
SIZES |= {"max_position_embeddings": 64, "relative_clip": 32, "relative_max_distance": 64}
SIZES |= {"tie_word_embeddings": False, "initializer_range": 0.15}
BATCH, LEARNING_RATE, MASKED, RAREST = 16, 5e-3, 0.3, 40


def corpus() -> tuple[Tensor, Tensor, int]:
    """Training rows (n 64), held-out rows (m 512), and the vocabulary's size, whose last id is the mask."""
    train, held_out = split(classics(), 0.1)
    tokenizer = character_tokenizer((record.text for record in train), min_count=RAREST)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    rows = (Blocks(encode(part, tokenizer), n).rows for part, n in ((train, LENGTHS[0]), (held_out, LENGTHS[-1])))
    return *rows, len(tokenizer)


def hide(ids: Tensor, mask: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """ids (b t) with 30 % of the characters masked, and where; special and rare characters are not asked for."""
    hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids >= len(SPECIAL_TOKENS))
    return ids.masked_fill(hidden, mask), hidden


def guess(model: NoriaRoFormerForMaskedLM, ids: Tensor, hidden: Tensor) -> Tensor:
    """Logits (n v) of the n hidden characters alone: a head over all of them would take most of the time."""
    return model.lm_head(model.model(ids).last_hidden_state[hidden])


def train(model: NoriaRoFormerForMaskedLM, rows: Tensor, budget: Budget, seed: int) -> None:
    """AdamW, on batches that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    budget.start()
    while budget.spent < 1:
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        ids, hidden = hide(batch, model.config.vocab_size - 1, generator)
        loss = cross_entropy(guess(model, ids, hidden), batch[hidden])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * budget.factor()
        optimizer.step()
        budget.advance(budget.step + 1)


@torch.inference_mode()
def evaluate(model: NoriaRoFormerForMaskedLM, held_out: Tensor, length: int) -> dict[str, float] | None:
    """Accuracy and loss on the held-out text in rows of `length`; None where the encoding refuses such rows."""
    ids, hidden = hide(held_out, model.config.vocab_size - 1, torch.Generator().manual_seed(0))
    parts = (x.view(-1, length).split(4096 // length) for x in (ids, hidden))
    try:
        logits = torch.cat([guess(model, *part) for part in zip(*parts, strict=True)])
    except ValueError:
        return None
    right = logits.argmax(-1) == held_out[hidden]
    return {"accuracy": right.double().mean().item(), "loss": cross_entropy(logits, held_out[hidden]).item()}


def measure(encoding: str, seed: int, budget: Budget, texts: tuple[Tensor, Tensor, int]) -> dict[str, Any]:
    """One model, trained and read at every length."""
    rows, held_out, vocabulary = texts
    torch.manual_seed(seed)
    model = NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(vocab_size=vocabulary, **SIZES, **VARIANTS[encoding]))
    # As large as the codes that some encodings add, lest one drown the other.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.4)
    train(model.train(), rows, budget, seed)
    lengths = {str(length): evaluate(model.eval(), held_out, length) for length in LENGTHS}
    run = {"encoding": encoding, "seed": seed, "steps": budget.step, "seconds": round(budget.elapsed, 2)}
    return run | {"parameters": model.num_parameters(), "lengths": lengths}


def gather(options: Any) -> None:
    """Measures what the output folder lacks, and draws everything that is there."""
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    timed = options.seconds is not None
    budget = {"seconds": options.seconds if timed else 0.0, "steps": None if timed else options.steps}
    Budget(**budget)
    options.output.mkdir(parents=True, exist_ok=True)
    path, results, texts = options.output / "positions.json", {"settings": budget, "runs": []}, corpus()
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    if results["settings"] != budget:
        raise ValueError(f"{path} was measured with other settings: {results['settings']}; choose another --output")
    done = {(run["encoding"], run["seed"]) for run in results["runs"]}
    for seed, encoding in product(range(options.seeds), options.encodings):
        if (encoding, seed) not in done:
            run = measure(encoding, seed, Budget(**budget), texts)
            results["runs"].append(run)
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            shown = "  ".join(f"{v['accuracy']:.3f}" if v else "    -" for v in run["lengths"].values())
            print(f"{encoding:<18} seed {seed}  {run['seconds']:5.1f} s   accuracy {shown}", flush=True)
    print(report(options.output))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="positions.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encodings", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="how many times each is trained (3)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each model (1500)")
    parser.add_argument("--seconds", type=float, help="train each model for so long instead")
    parser.add_argument("--output", type=Path, default=Path("noria-positions"), metavar="FOLDER")
    try:
        gather(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"positions.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
