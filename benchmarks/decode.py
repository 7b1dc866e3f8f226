"""Milliseconds per token inside generate(), against the time that reading all weights once takes.

Models of 12 layers, 768 wide, vocabulary 50,280, input and output embeddings tied, random float32 weights, one row,
greedy. The floor is the sum over every weight, measured between the others: no token can be had for less from memory.
`step` is model(...) with its cache, without generate(); `linears` is every nn.Linear of the model once, in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Times, now, progress, publish, ratio, start, table
from shapes import BASE, OURS, SMALL, build, parameter_table
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from noria.modeling.cache import NoriaCache

PROMPT = 16


class Stamps(BaseStreamer):
    """When generate() handed out each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(now())

    def end(self) -> None:
        """Nothing more to note."""

    def intervals(self) -> list[float]:
        """Seconds between tokens; the prompt, and the first token, which ends the prefill, are left out."""
        return [later - earlier for earlier, later in zip(self.times[1:], self.times[2:], strict=False)]


def generate(model: PreTrainedModel, new: int) -> list[float]:
    stamps = Stamps()
    ids = torch.arange(1, PROMPT + 1)[None]
    model.generate(ids, do_sample=False, max_new_tokens=new, streamer=stamps, pad_token_id=0)
    return stamps.intervals()


@torch.no_grad()
def steps(model: PreTrainedModel, new: int) -> list[float]:
    ours = hasattr(model.config, "layer_type")
    cache = NoriaCache(model.config) if ours else DynamicCache(config=model.config)
    model(input_ids=torch.arange(1, PROMPT + 1)[None], past_key_values=cache, use_cache=True)
    token = torch.ones(1, 1, dtype=torch.int64)
    return clocked(lambda: model(input_ids=token, past_key_values=cache, use_cache=True), new)


@torch.no_grad()
def linears(model: PreTrainedModel, new: int) -> list[float]:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = [torch.randn(1, 1, layer.in_features) for layer in layers]

    def run() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return clocked(run, new)


@torch.no_grad()
def floor(model: PreTrainedModel, new: int) -> list[float]:
    weights = list(model.parameters())

    def run() -> None:
        for weight in weights:
            weight.sum()

    return clocked(run, new)


def clocked(run: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        begin = now()
        run()
        found.append(now() - begin)
    return found


KINDS = {"floor": floor, "generate()": generate, "step": steps, "linears": linears}


def measure(models: dict[str, PreTrainedModel], rounds: int, new: int) -> str:
    found: dict[tuple[str, str], list[float]] = {(model, kind): [] for model in models for kind in KINDS}
    for _ in range(rounds):
        for name, model in models.items():
            for kind, run in KINDS.items():
                # GPT-2's projections are no nn.Linear.
                if (kind, name) != ("linears", "GPT-2"):
                    found[name, kind] += run(model, new)
        progress("a round is done")
    rows = []
    for name, model in models.items():
        times = {kind: Times(tuple(found[name, kind])) for kind in KINDS if found[name, kind]}
        megabytes = sum(weight.nbytes for weight in model.parameters()) / 1e6
        rate = f"{megabytes / times['floor'].median / 1e3:.1f}"
        row = [name, f"{megabytes:.0f}", rate, str(times["floor"])]
        for kind in list(KINDS)[1:]:
            there = kind in times
            row += [str(times[kind]), f"**{ratio(times[kind], times['floor'])}**"] if there else ["", ""]
        rows.append(row)
    header = [
        "model",
        "MB",
        "floor, GB/s",
        "floor, ms",
        *(x for k in list(KINDS)[1:] for x in (f"{k}, ms", "x floor")),
    ]
    return table(header, rows)


def main() -> None:
    arguments = start("decode", __doc__)
    shape, rounds, new = (SMALL, 2, 8) if arguments.quick else (BASE, 6, 24)
    models = build([*OURS, "Llama", "GPT-2"], shape)
    publish("decode", arguments, f"{parameter_table(models)}\n\n{measure(models, rounds, new)}")


if __name__ == "__main__":
    main()
