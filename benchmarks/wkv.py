"""RWKV-4: its WKV operator against transformers' loop, and a model 768 wide against a Llama of the same size.

Operator   random keys of standard deviation 1, where one scale serves a block of tokens, and 30, where each token
           needs its own; errors are those of the output against the recurrence in float64, relative to its largest
Model      2 layers, 12 d^2 parameters each: prefill, and a step of training with AdamW, of one row of random tokens
"""

from __future__ import annotations

from functools import partial

import torch
from harness import compare, error, progress, publish, ratio, start, table
from models import prefill, training_step
from shapes import Shape, llama, parameter_table
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from noria import NoriaRWKVConfig, NoriaRWKVForCausalLM
from noria.modeling.ops.wkv import wkv

SHAPES = ((1, 512, 768), (1, 2048, 768), (4, 512, 768), (1, 2048, 2048))
SPREADS = (1, 30)
LENGTHS = (512, 2048)
# The gradient of a loop holds every state: beyond these sizes nobody waits for it.
MOST_WITH_GRADIENT = 512 * 768
BODY = Shape(layers=2, width=768, vocabulary=1000)


def inputs(batch: int, length: int, width: int, spread: float) -> list[Tensor]:
    """k, v (b t d), decay and bonus (d)."""
    torch.manual_seed(length)
    k, v = torch.randn(2, batch, length, width).unbind(0)
    return [k * spread, v, torch.randn(width) - 1, torch.randn(width)]


def ours(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    return wkv(k, v, decay, bonus)[0]


def loop(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    return rwkv_linear_attention_cpu(decay, bonus, k, v)[0]


def gradients(core, *parts: Tensor) -> tuple[Tensor, ...]:
    parts = tuple(x.detach().requires_grad_() for x in parts)
    return torch.autograd.grad(core(*parts).sum(), parts)


def operator(shapes: tuple[tuple[int, int, int], ...], seconds: float) -> str:
    rows = []
    for shape in shapes:
        for spread in SPREADS:
            parts = inputs(*shape, spread)
            truth, _ = wkv(*(x.double() for x in parts), form="sequential")
            with torch.no_grad():
                times = compare({"loop": partial(loop, *parts), "ours": partial(ours, *parts)}, seconds)
            row = [
                *shape,
                spread,
                str(times["loop"]),
                str(times["ours"]),
                f"**{ratio(times['loop'], times['ours'])}**",
            ]
            row += [f"{error(core(*parts), truth):.0e}" for core in (loop, ours)]
            runs = {"ours": partial(gradients, ours, *parts)}
            if parts[0].numel() <= MOST_WITH_GRADIENT:
                runs = {"loop": partial(gradients, loop, *parts)} | runs
            times = compare(runs, seconds)
            faster = f"**{ratio(times['loop'], times['ours'])}**" if "loop" in times else ""
            row += [str(times.get("loop", "")), str(times["ours"]), faster]
            rows.append(row)
            progress(" ".join(map(str, row)))
    header = ["B", "L", "D", "std of k", "loop, ms", "ours, ms", "times faster", "its error", "our error"]
    header += ["loop with gradient, ms", "ours with gradient, ms", "times faster"]
    return table(header, rows)


def rwkv(shape: Shape) -> PreTrainedModel:
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers}
    return NoriaRWKVForCausalLM(NoriaRWKVConfig(**shape.common(), **sizes, intermediate_size=shape.width * 7 // 2))


def body(lengths: tuple[int, ...], seconds: float) -> str:
    torch.manual_seed(0)
    models: dict[str, PreTrainedModel] = {"Llama": llama(BODY).eval(), "RWKV-4": rwkv(BODY).eval()}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    rows = []
    for length in lengths:
        for what in ("prefill", "training step"):
            runs = {}
            for name, model in models.items():
                training = what != "prefill"
                model.train(training)
                runs[name] = training_step(model, length, optimizers[name]) if training else prefill(model, length)
            times = compare(runs, seconds)
            share = f"**{ratio(times['RWKV-4'], times['Llama'])}**"
            rows.append([what, f"{length:,}", str(times["Llama"]), str(times["RWKV-4"]), share])
            progress(" ".join(rows[-1]))
    header = ["", "L", "Llama, ms", "RWKV-4, ms", "x Llama"]
    return f"{parameter_table(models)}\n\n{table(header, rows)}"


def main() -> None:
    arguments = start("wkv", __doc__)
    shapes, lengths, seconds = (SHAPES[:1], LENGTHS[:1], 1.0) if arguments.quick else (SHAPES, LENGTHS, 10.0)
    publish("wkv", arguments, f"{operator(shapes, seconds)}\n\n{body(lengths, 2 * seconds)}")


if __name__ == "__main__":
    main()
