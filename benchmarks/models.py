"""Whole models, 4 layers of 256, against a Llama of the same size: a training step, and prefill.

A training step is forward, backward and AdamW on one row of random tokens; prefill is a forward that fills the cache
and keeps the last token's logits, as generate() does it. Llama runs on transformers' sdpa attention.
"""

from __future__ import annotations

import torch
from harness import compare, progress, publish, ratio, start, table
from shapes import OURS, SMALL, build, parameter_table
from torch import Tensor
from transformers import PreTrainedModel

LENGTHS = (512, 2048, 8192)
LONG = 32768


def tokens(length: int) -> Tensor:
    torch.manual_seed(length)
    return torch.randint(SMALL.vocabulary, (1, length))


def training_step(model: PreTrainedModel, length: int, optimizer: torch.optim.Optimizer):
    ids = tokens(length)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    return step


def prefill(model: PreTrainedModel, length: int):
    ids = tokens(length)

    @torch.no_grad()
    def run() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    return run


def measure(what: str, models: dict[str, PreTrainedModel], lengths: tuple[int, ...], seconds: float) -> str:
    rows = []
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    for length in lengths:
        if what == "training":
            runs = {name: training_step(model, length, optimizers[name]) for name, model in models.items()}
        else:
            runs = {name: prefill(model, length) for name, model in models.items()}
        # Llama alone takes minutes for the longest; it needs no more rounds than that, and no unmeasured one.
        times = compare(runs, seconds) if length < LONG else compare(runs, 0.0, least=1, warm=False)
        row = [f"{length:,}", str(times["Llama"]), f"{length / times['Llama'].median:,.0f}"]
        for name in OURS:
            row += [str(times[name]), f"**{ratio(times[name], times['Llama'])}**"]
        rows.append(row)
        progress(f"{what}: {' '.join(row)}")
    header = ["L", "Llama, ms", "tokens/s", *(x for name in OURS for x in (f"{name}, ms", "x Llama"))]
    return table(header, rows)


def main() -> None:
    arguments = start("models", __doc__)
    models = build(["Llama", *OURS], SMALL)
    lengths, seconds = (LENGTHS[:1], 1.0) if arguments.quick else (LENGTHS, 20.0)
    parts = [parameter_table(models)]
    parts += ["Prefill:", measure("prefill", models, lengths, seconds)]
    for model in models.values():
        model.train()
    long = () if arguments.quick else (LONG,)
    parts += ["Training step:", measure("training", models, lengths + long, seconds)]
    publish("models", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
