"""Mamba's selective scan against transformers' and mambapy's, and a Mamba of 768 against a Llama of the same size.

Forward     16 states a channel; transformers' own function without compiled kernels, mambapy's parallel scan, ours
Backward    forward and backward; transformers' takes minutes for the longer ones and is left out
Memory      peak beyond the inputs, in a fresh process, as a multiple of the inputs' bytes
Model       4 layers of Mamba and 2 of Llama, 768 wide, 1,000 tokens of vocabulary: prefill, and a training step

`error` is the largest difference from the recurrence in float64, relative to its largest value; backward, that of the
worst gradient. mambapy is optional:

    pip install --no-deps mambapy
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from harness import compare, error, in_fresh_process, peak_growth, progress, publish, ratio, start, table
from models import prefill, training_step
from shapes import Shape, llama
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from noria import NoriaMambaConfig, NoriaMambaForCausalLM
from noria.modeling.ops.selective_scan import selective_scan

STATES = 16
SHAPES = ((1, 512, 256), (4, 512, 256), (1, 2048, 256), (1, 512, 1536), (4, 512, 1536), (1, 2048, 1536))
WHOLE = Shape(layers=2, width=768, vocabulary=1000)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(b: int, t: int, d: int) -> Inputs:
    """Inputs, step sizes of about 0.07, rates, and what writes and reads."""
    torch.manual_seed(t + d)
    u, delta = torch.randn(b, t, d), F.softplus(torch.randn(b, t, d) - 3)
    rates = -torch.arange(1.0, STATES + 1).expand(d, STATES).contiguous()
    return u, delta, rates, torch.randn(b, t, STATES), torch.randn(b, t, STATES)


def ours(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs)[0]


def transformers_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    return mamba_selective_scan(u, delta, A, B, C).transpose(1, 2)


def mambapy_scan() -> Callable[..., Tensor] | None:
    try:
        pscan = import_module("mambapy.pscan").pscan
    except ImportError:
        return None

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        states = pscan(torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None])
        return (states @ C[..., None]).squeeze(-1)

    return scan


def truth(*inputs: Tensor) -> Tensor:
    return selective_scan(*(x.double() for x in inputs), form="sequential")[0]


def forward(shapes: tuple, seconds: float) -> str:
    rows = []
    for shape in shapes:
        inputs = draw(*shape)
        scans = {"ours": ours, "transformers": transformers_scan, "mambapy": mambapy_scan()}
        runs = {name: partial(scan, *inputs) for name, scan in scans.items() if scan}
        with torch.inference_mode():
            times = compare(runs, seconds)
            wrong = error(ours(*inputs), truth(*inputs))
        rows.append([shape_text(shape), *cells(times), f"{wrong:.1e}"])
        progress(f"forward: {' '.join(rows[-1])}")
    return table(["B x L x D", "ours, ms", "transformers", "x ours", "mambapy", "x ours", "error"], rows)


def backward(shapes: tuple, seconds: float) -> str:
    rows = []
    for shape in shapes:
        inputs = tuple(x.requires_grad_() for x in draw(*shape))
        scans = {"ours": ours, "mambapy": mambapy_scan()}
        runs = {name: partial(gradients, scan, inputs) for name, scan in scans.items() if scan}
        times = compare(runs, seconds, least=2)
        # The loop in float64 keeps every state: a shorter text is enough to see what rounding does.
        short = tuple(x[:, :256].detach().requires_grad_() if x.dim() == 3 else x for x in inputs)
        exact = gradients(truth, tuple(x.detach().double().requires_grad_() for x in short))
        wrong = max(map(error, gradients(ours, short), exact))
        rows.append([shape_text(shape), *cells(times, ("mambapy",)), f"{wrong:.1e}"])
        progress(f"backward: {' '.join(rows[-1])}")
    return table(["B x L x D", "ours, ms", "mambapy", "x ours", "error"], rows)


def gradients(scan: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scan(*inputs).sum(), inputs)


def cells(times: dict, peers: tuple[str, ...] = ("transformers", "mambapy")) -> list[str]:
    found = [str(times["ours"])]
    for name in peers:
        found += [str(times[name]), f"**{ratio(times[name], times['ours'])}**"] if name in times else ["-", "-"]
    return found


def shape_text(shape: tuple[int, int, int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What one fresh process measures: MiB of the inputs, and of the peak beyond them."""
    inputs = draw(1, case["length"], 1536)
    size = sum(x.nbytes for x in inputs) / 2**20
    small = draw(1, 64, 1536)
    if case["backward"]:
        inputs, small = (tuple(x.requires_grad_() for x in part) for part in (inputs, small))
        run = partial(gradients, ours)
    else:
        run = torch.no_grad()(lambda parts: ours(*parts))
    run(small)
    return {"inputs": size, "growth": peak_growth(lambda: run(inputs))[1]}


def memory(arguments, lengths: tuple[int, ...]) -> str:
    rows = []
    for length in lengths:
        found = [in_fresh_process(arguments, {"length": length, "backward": back}) for back in (False, True)]
        shares = [f"{one['growth']:.0f} MiB, **{one['growth'] / one['inputs']:.2f}x**" for one in found]
        rows.append([f"1 x {length:,} x 1,536", f"{found[0]['inputs']:.0f} MiB", *shares])
        progress(f"memory: {' '.join(rows[-1])}")
    return table(["B x L x D", "inputs", "forward", "forward and backward"], rows)


def mamba() -> NoriaMambaForCausalLM:
    return NoriaMambaForCausalLM(
        NoriaMambaConfig(**WHOLE.common(), hidden_size=WHOLE.width, num_hidden_layers=2 * WHOLE.layers)
    )


def whole_models(lengths: tuple[int, ...], seconds: float) -> str:
    ours = mamba()
    models = {"Mamba": ours, "Llama": llama(WHOLE, ours.num_parameters())}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    rows = []
    for length in lengths:
        runs = {name: prefill(model.eval(), length) for name, model in models.items()}
        times = [compare(runs, seconds, least=2)]
        runs = {name: training_step(model.train(), length, optimizers[name]) for name, model in models.items()}
        times.append(compare(runs, seconds, least=2))
        row = [f"{length:,}"]
        for found in times:
            row += [str(found["Mamba"]), str(found["Llama"]), f"**{ratio(found['Mamba'], found['Llama'])}**"]
        rows.append(row)
        progress(f"models: {' '.join(row)}")
    counts = ", ".join(f"{name} {model.num_parameters():,}" for name, model in models.items())
    header = ["L", "prefill, Mamba, ms", "Llama", "x Llama", "training step, Mamba, ms", "Llama", "x Llama"]
    return f"Parameters: {counts}.\n\n{table(header, rows)}"


def add_case(parser: ArgumentParser) -> None:
    parser.add_argument("--case", type=json.loads, help="one case as JSON; what a fresh process is started with")
    parser.add_argument("--part", choices=("forward", "backward", "memory", "models"), help="one part only")


def main() -> None:
    arguments = start("selective_scan", __doc__, add_case)
    if arguments.case:
        print(json.dumps(answer(arguments.case)))
        return
    shapes, seconds, lengths = (SHAPES[:1], 0.5, (512,)) if arguments.quick else (SHAPES, 8.0, (512, 2048))
    parts = {
        "forward": lambda: forward(shapes, seconds),
        "backward": lambda: backward(shapes, seconds),
        "memory": lambda: memory(arguments, (512,) if arguments.quick else (2048, 8192)),
        "models": lambda: whole_models(lengths, 2 * seconds),
    }
    wanted = [arguments.part] if arguments.part else list(parts)
    text = "\n\n".join(f"{name.capitalize()}:\n\n{parts[name]()}" for name in wanted)
    publish("selective_scan", arguments, text)


if __name__ == "__main__":
    main()
