"""Peak memory against length, and the cache's size: 4 layers of 256, one row, each case in a fresh process.

Prefill is generate() of one token with `prefill_chunk_size` 1,024; training is forward, backward and AdamW. Given is
the peak of resident memory beyond what the process held before, the model among it, in MiB.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

import torch
from harness import in_fresh_process, peak_growth, progress, publish, start, table
from shapes import OURS, SMALL, build
from transformers import PreTrainedModel

from noria.modeling.cache import NoriaCache

CHUNK = 1024
PREFILL = (8192, 65536)
TRAINING = (2048, 8192, 32768)
CACHED = (16, 4096)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What one fresh process measures."""
    model = build([case["model"]], SMALL)[case["model"]]
    ids = torch.randint(SMALL.vocabulary, (1, case["length"]))
    if case["what"] == "cache":
        cache = NoriaCache(model.config)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return {"bytes": cache.nbytes}
    run = {"prefill": prefill, "training": training}[case["what"]]
    # A short run first: libraries that are loaded on first use are no part of the answer.
    run(model, ids[:, :64])
    before, growth = peak_growth(lambda: run(model, ids))
    return {"before": before, "growth": growth}


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> None:
    model.generate(ids, do_sample=False, max_new_tokens=1, prefill_chunk_size=CHUNK, pad_token_id=0)


def training(model: PreTrainedModel, ids: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def growth_table(arguments, what: str, lengths: tuple[int, ...]) -> str:
    rows = []
    for name in (*OURS, "Llama"):
        cells, peaks = [], []
        for length in lengths:
            found = in_fresh_process(arguments, {"what": what, "model": name, "length": length})
            cells.append(f"{found['growth']:.0f}")
            peaks.append(found["before"] + found["growth"])
        rows.append([name, *cells, f"{peaks[-1] / peaks[0]:.2f}"])
        progress(f"{what}: {' '.join(rows[-1])}")
    header = ["model", *(f"L {length:,}" for length in lengths), "whole process, last / first"]
    return table(header, rows)


def cache_table(arguments) -> str:
    rows = []
    for name in OURS:
        found = [in_fresh_process(arguments, {"what": "cache", "model": name, "length": n})["bytes"] for n in CACHED]
        rows.append([name, *(f"{size:,}" for size in found)])
    return table(["model", *(f"cache after {n:,} tokens, bytes" for n in CACHED)], rows)


def add_case(parser: ArgumentParser) -> None:
    parser.add_argument("--case", type=json.loads, help="one case as JSON; what a fresh process is started with")


def main() -> None:
    arguments = start("memory", __doc__, add_case)
    if arguments.case is not None:
        print(json.dumps(answer(arguments.case)))
        return
    lengths = (2048, 4096) if arguments.quick else None
    parts = ["Prefill in chunks:", growth_table(arguments, "prefill", lengths or PREFILL)]
    parts += ["Training step:", growth_table(arguments, "training", lengths or TRAINING)]
    publish("memory", arguments, "\n\n".join([*parts, cache_table(arguments)]))


if __name__ == "__main__":
    main()
