"""Our cores against those of other packages, where they are installed: fast-transformers and torchscale.

Causal product   B 1, 8 heads of 64, elu + 1 features: fast-transformers' C++ and our recurrence without decay
Retention        a whole layer, 512 wide, 8 heads, the same weights: torchscale's parallel, chunkwise (512) and
                 recurrent forms, and our layer; rotations and masks are computed before, as layers share them

`agrees to` is the largest difference between the peer's output and ours, relative to ours. torchscale's chunkwise form
normalises otherwise than its parallel one, so it does not compute the same numbers.

    pip install --no-deps torchscale fairscale
    pip install --no-build-isolation --no-deps pytorch-fast-transformers    (compiles C++; needs wheel, and no nvcc)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import torch
from harness import compare, error, progress, publish, ratio, start, table
from torch import Tensor

from noria import NoriaRetNetConfig
from noria.modeling.mixers.feature_maps import elu_plus_one
from noria.modeling.mixers.retention import Retention
from noria.modeling.ops.matrix_recurrence import matrix_recurrence
from noria.modeling.state import Context

HEADS, WIDTH, CHUNK = 8, 512, 512
LENGTHS = (512, 2048, 8192)
# Beyond these the forms take longer than anybody waits: one is quadratic in memory, the other a loop over tokens.
LONGEST = {"parallel": 2048, "recurrent": 2048}


def peer(name: str) -> ModuleType | str:
    """The module, or why there is none."""
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as reason:
        return f"skipped: {name} cannot be imported ({type(reason).__name__}: {str(reason).splitlines()[0]})"


def gradients(core: Callable[..., Tensor], *parts: Tensor) -> tuple[Tensor, ...]:
    parts = tuple(x.detach().requires_grad_() for x in parts)
    return torch.autograd.grad(core(*parts).sum(), parts)


def causal_product(lengths: tuple[int, ...], seconds: float) -> str:
    module = peer("fast_transformers.causal_product")
    if isinstance(module, str):
        return module

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return matrix_recurrence(q, k, v)[0]

    rows = []
    for length in lengths:
        torch.manual_seed(length)
        q, k, v = (torch.randn(1, HEADS, length, WIDTH // HEADS) for _ in range(3))
        q, k = elu_plus_one(q), elu_plus_one(k)
        row = [f"{length:,}"]
        for wrap in (partial, lambda core, *parts: partial(gradients, core, *parts)):
            times = compare({"peer": wrap(module.causal_dot_product, q, k, v), "ours": wrap(ours, q, k, v)}, seconds)
            row += [str(times["peer"]), str(times["ours"]), f"**{ratio(times['ours'], times['peer'])}**"]
        rows.append([*row, f"{error(module.causal_dot_product(q, k, v), ours(q, k, v)):.0e}"])
        progress(" ".join(rows[-1]))
    header = [
        "L",
        *(f"{who}, {what}" for what in ("forward", "both ways") for who in ("peer, ms", "noria, ms", "x peer")),
    ]
    return table([*header, "agrees to"], rows)


def do_without_timm() -> None:
    """torchscale imports timm, and with it torchvision, for a layer that retention does not use."""
    if find_spec("timm") is None:
        layers = ModuleType("timm.models.layers")
        layers.drop_path = None
        sys.modules |= {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models"), layers.__name__: layers}


def retention_layers(module: ModuleType) -> tuple[torch.nn.Module, Retention]:
    """torchscale's layer and ours with the same weights."""
    settings = SimpleNamespace(multiway=False, layernorm_eps=1e-6)
    theirs = module.MultiScaleRetention(settings, WIDTH, WIDTH, HEADS)
    config = NoriaRetNetConfig(hidden_size=WIDTH, num_attention_heads=HEADS, value_size=WIDTH, norm_eps=1e-6)
    ours = Retention(config)
    weights = {name.replace("out_proj", "o_proj"): weight for name, weight in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    return theirs.eval(), ours.eval()


def retention_forms(module: ModuleType, length: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Each form that runs at this length, ours first."""
    architecture = import_module("torchscale.architecture.retnet")
    settings = SimpleNamespace(
        decoder_embed_dim=WIDTH, decoder_retention_heads=HEADS, recurrent_chunk_size=min(CHUNK, length)
    )
    positions = architecture.RetNetRelPos(settings)
    theirs, ours = retention_layers(module)
    x, context = torch.randn(1, length, WIDTH), Context(torch.arange(length)[None])
    yield "noria", lambda: ours(x, context)[0]
    if length <= LONGEST["parallel"]:
        yield "parallel", partial(theirs, x, positions(length))
    yield "chunkwise", partial(theirs, x, positions(length, chunkwise_recurrent=True), chunkwise_recurrent=True)
    if length <= LONGEST["recurrent"]:
        places = [positions(place + 1, activate_recurrent=True) for place in range(length)]

        def recurrent() -> Tensor:
            state: dict[str, Tensor] = {}
            tokens = (x[:, place : place + 1] for place in range(length))
            pairs = zip(tokens, places, strict=True)
            return torch.cat([theirs(token, place, incremental_state=state) for token, place in pairs], dim=1)

        yield "recurrent", recurrent


@torch.no_grad()
def retention(lengths: tuple[int, ...], seconds: float) -> str:
    do_without_timm()
    module = peer("torchscale.component.multiscale_retention")
    architecture = peer("torchscale.architecture.retnet")
    if isinstance(module, str) or isinstance(architecture, str):
        return module if isinstance(module, str) else architecture
    rows = []
    for length in lengths:
        torch.manual_seed(length)
        forms = dict(retention_forms(module, length))
        times, y = compare(forms, seconds), forms["noria"]()
        row = [f"{length:,}", str(times["noria"])]
        for name in ("parallel", "chunkwise", "recurrent"):
            if name in forms:
                same = f"{error(forms[name](), y):.0e}"
                row += [str(times[name]), f"**{ratio(times['noria'], times[name])}**", same]
            else:
                row += ["", "", ""]
        rows.append(row)
        progress(" ".join(row))
    names = (x for n in ("parallel", "chunkwise", "recurrent") for x in (f"{n}, ms", "noria / it", "agrees to"))
    return table(["L", "noria, ms", *names], rows)


def main() -> None:
    arguments = start("peers", __doc__)
    lengths, seconds = (LENGTHS[:1], 0.5) if arguments.quick else (LENGTHS, 5.0)
    parts = ["fast-transformers' causal product:", causal_product(lengths, seconds)]
    parts += ["torchscale's retention:", retention(lengths, seconds)]
    publish("peers", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
