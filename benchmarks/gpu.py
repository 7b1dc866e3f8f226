"""The same questions on CUDA in bfloat16: cores against flash attention, models against Llama.

Cores: B 4, 8 heads of 64, softmax by torch's flash kernel; flash-linear-attention's chunk kernels where they are
installed. Models: 4 layers of 256 and 12 of 768, training step and prefill, B 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from attention import HEADS, WIDTH, forward_and_backward, linear, retention
from harness import compare, error, progress, publish, ratio, start, table
from peers import peer
from shapes import BASE, OURS, SMALL, Shape, build
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from noria.modeling.ops.dispatch import forced_form

BATCH = 4
LENGTHS = (512, 2048, 8192, 32768)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True)


def fla_cores() -> dict[str, Callable[..., Tensor]]:
    """flash-linear-attention's counterparts; its tensors are (b t h d)."""
    module = peer("fla.ops.simple_gla")
    if isinstance(module, str):
        progress(module)
        return {}

    def run(q: Tensor, k: Tensor, v: Tensor, decaying: bool) -> Tensor:
        b, h, t, _ = q.shape
        decay = torch.tensor([math.log1p(-(2.0 ** (-5 - head))) * decaying for head in range(h)], device=q.device)
        swapped = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        y = module.chunk_simple_gla(*swapped, g=decay.expand(b, t, h).contiguous(), scale=1.0)[0]
        return y.transpose(1, 2)

    return {"fla linear": partial(run, decaying=False), "fla retention": partial(run, decaying=True)}


def cores_table(lengths: tuple[int, ...], seconds: float) -> str:
    cores = {"flash": flash, "linear": linear, "retention": retention} | fla_cores()
    rows = []
    for length in lengths:
        torch.manual_seed(length)
        shape = (BATCH, length, HEADS, WIDTH)
        parts = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)]
        with torch.no_grad():
            forward = compare({name: partial(core, *parts[:3]) for name, core in cores.items()}, seconds)
            y = retention(*parts[:3])
            with forced_form("chunkwise"):
                wrong = error(y, retention(*(x.double() for x in parts[:3])))
        both = compare({name: partial(forward_and_backward, core, *parts) for name, core in cores.items()}, seconds)
        for what, times in (("forward", forward), ("both ways", both)):
            cells = [f"{times[name]} = {ratio(times[name], times['flash'])}" for name in cores if name != "flash"]
            rows.append([f"{length:,}", what, str(times["flash"]), *cells, f"{wrong:.0e}"])
            progress(" ".join(rows[-1]))
    header = ["L", "", "flash, ms", *(f"{name}, ms = x flash" for name in cores if name != "flash")]
    return table([*header, "error of retention"], rows)


def prefill(model: PreTrainedModel, ids: Tensor) -> None:
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, logits_to_keep=1)


def training(model: PreTrainedModel, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()


def models_table(shape: Shape, lengths: tuple[int, ...], seconds: float) -> str:
    rows = []
    models = {name: model.to("cuda") for name, model in build(["Llama", *OURS], shape).items()}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    for length in lengths:
        ids = torch.randint(shape.vocabulary, (BATCH, length), device="cuda")
        for what in ("prefill", "training"):
            runs = {
                name: partial(prefill, model, ids)
                if what == "prefill"
                else partial(training, model, ids, optimizers[name])
                for name, model in models.items()
            }
            with torch.autocast("cuda", torch.bfloat16):
                times = compare(runs, seconds)
            cells = [f"{times[name]} = {ratio(times[name], times['Llama'])}" for name in OURS]
            rows.append([f"{shape.layers} x {shape.width}", f"{length:,}", what, str(times["Llama"]), *cells])
            progress(" ".join(rows[-1]))
    return table(["shape", "L", "", "Llama, ms", *(f"{name}, ms = x Llama" for name in OURS)], rows)


def main() -> None:
    arguments = start("gpu", __doc__)
    if not torch.cuda.is_available():
        progress("gpu: nothing measured, torch sees no CUDA device here.")
        return
    lengths, seconds = (LENGTHS[:1], 0.2) if arguments.quick else (LENGTHS, 3.0)
    parts = ["Cores:", cores_table(lengths, seconds), "Models, bfloat16 autocast:"]
    parts += [models_table(SMALL, lengths[:3], seconds), models_table(BASE, lengths[:2], seconds)]
    publish("gpu", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
