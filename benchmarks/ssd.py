"""Mamba-2's recurrence against transformers' at the shape of mamba2-130m, and whole models against a Llama.

Recurrence    B 1, 24 heads of 64, states of 128, one group, from the raw step sizes on: mamba2_chunk_scan of
              transformers in chunks of 256, as it is configured, and of 64, and our ssd. `error` is the largest
              difference from the recurrence in float64, relative to its largest value; `peak` what a forward, or
              forward and backward, adds to resident memory, in MiB, each in a fresh process
Models        4 layers of 768 of Mamba-2 and 2 of Llama, as many parameters, a vocabulary of 1,000: prefill and a
              training step (forward, backward, AdamW)
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import compare, error, in_fresh_process, peak_growth, progress, publish, ratio, start, table
from models import prefill, training_step
from shapes import Shape, llama
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from noria import NoriaMamba2Config, NoriaMamba2ForCausalLM
from noria.modeling.ops.ssd import ssd

HEADS, DIM, STATE = 24, 64, 128
LENGTHS = (512, 2048)
WIDE = Shape(layers=4, width=768, vocabulary=1000)


def inputs(length: int) -> list[Tensor]:
    """x, raw step sizes, A, B, C: steps and rates as a model begins with."""
    torch.manual_seed(length)
    x, step = torch.randn(1, length, HEADS, DIM), torch.randn(1, length, HEADS) - 3
    return [x, step, -1 - 15 * torch.rand(HEADS), *(torch.randn(1, length, 1, STATE) for _ in range(2))]


def ours(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, form: str | None = None) -> Tensor:
    delta = F.softplus(step)
    return ssd(x, delta, delta * A, B, C, form=form)[0]


def theirs(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    return mamba2_chunk_scan(x, step, A, B, C, chunk_size=chunk, dt_softplus=True)


CORES: dict[str, Callable[..., Tensor]] = {
    "transformers, 256": partial(theirs, chunk=256),
    "transformers, 64": partial(theirs, chunk=64),
    "ours": ours,
}


def forward(core: Callable[..., Tensor], parts: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return core(*parts)


def both_ways(core: Callable[..., Tensor], parts: Sequence[Tensor]) -> None:
    leaves = [part.detach().requires_grad_() for part in parts]
    core(*leaves).sum().backward()


WAYS = {"forward": forward, "forward and backward": both_ways}


def answer(case: dict[str, Any]) -> dict[str, float]:
    """What one fresh process measures."""
    core, way = CORES[case["core"]], WAYS[case["way"]]
    way(core, inputs(128))
    parts = inputs(case["length"])
    return {"peak": peak_growth(lambda: way(core, parts))[1]}


def recurrence(arguments, lengths: Sequence[int], seconds: float) -> str:
    rows = []
    for length in lengths:
        parts = inputs(length)
        truth = ours(*(part.double() for part in parts), form="sequential")
        errors = {name: f"{error(forward(core, parts), truth):.1e}" for name, core in CORES.items()}
        for way, run in WAYS.items():
            times = compare({name: partial(run, core, parts) for name, core in CORES.items()}, seconds)
            for name, found in times.items():
                peak = in_fresh_process(arguments, {"core": name, "way": way, "length": length})["peak"]
                faster = f"**{times['transformers, 256'].median / found.median:.1f}x**"
                rows.append([way, f"{length:,}", name, str(found), faster, f"{peak:.0f}", errors[name]])
                progress(" ".join(rows[-1]))
    return table(["", "L", "", "ms", "as fast as transformers, 256", "peak", "error"], rows)


def pair() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    fields = WIDE.common() | {"hidden_size": WIDE.width, "num_hidden_layers": WIDE.layers}
    ours = NoriaMamba2ForCausalLM(NoriaMamba2Config(**fields)).eval()
    return {"Llama": llama(WIDE._replace(layers=WIDE.layers // 2), ours.num_parameters()), "Mamba-2": ours}


def whole_models(lengths: Sequence[int], seconds: float) -> str:
    rows, models = [], pair()
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    for length in lengths:
        runs = {
            "prefill": {name: prefill(model.eval(), length) for name, model in models.items()},
            "training": {name: training_step(model, length, optimizers[name]) for name, model in models.items()},
        }
        for what, candidates in runs.items():
            times = compare(candidates, seconds)
            against = f"**{ratio(times['Mamba-2'], times['Llama'])}**"
            rows.append([what, f"{length:,}", *map(str, times.values()), against])
            progress(" ".join(rows[-1]))
    counts = ", ".join(f"{name} {model.num_parameters():,}" for name, model in models.items())
    return f"Parameters: {counts}.\n\n" + table(["", "L", "Llama, ms", "Mamba-2, ms", "x Llama"], rows)


def add_case(parser: ArgumentParser) -> None:
    parser.add_argument("--case", type=json.loads, help="one case as JSON; what a fresh process is started with")


def main() -> None:
    arguments = start("ssd", __doc__, add_case)
    if arguments.case is not None:
        print(json.dumps(answer(arguments.case)))
        return
    lengths, seconds = ((512,), 1.0) if arguments.quick else (LENGTHS, 10.0)
    parts = [recurrence(arguments, lengths, seconds), whole_models(lengths, seconds)]
    publish("ssd", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
