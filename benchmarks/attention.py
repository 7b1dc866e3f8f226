"""Causal linear attention and retention against softmax attention: one layer's core, B 1, 8 heads of 64.

softmax     torch's scaled_dot_product_attention, causal
linear      S_t = S_(t-1) + k_t^T v_t, y_t = q_t S_t: no decay
retention   the same with one decay per head
normalised  elu + 1 features of q and k, and the quotient of two sums: the core of the linear transformer's mixer

Errors are relative to the largest value of the float64 recurrence, token by token; those of gradients to it as well up
to 1,024 tokens, and beyond (where it would hold a state per token) to the plain chunkwise form in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from harness import Times, compare, error, progress, publish, ratio, start, table
from torch import Tensor

from noria import NoriaLinearTransformerConfig
from noria.modeling.mixers.linear_attention import LinearMixer
from noria.modeling.ops.dispatch import forced_form
from noria.modeling.ops.matrix_recurrence import matrix_recurrence
from noria.modeling.position.base import PositionEncoding
from noria.modeling.state import Context

HEADS, WIDTH = 8, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
RECURRENCE_WITH_GRADIENT = 1024

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return matrix_recurrence(q, k, v)[0]


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    decay = torch.tensor([math.log1p(-(2.0 ** (-5 - head))) for head in range(q.shape[1])], device=q.device)
    return matrix_recurrence(q, k, v, decay)[0]


@cache
def linear_mixer() -> LinearMixer:
    return LinearMixer(NoriaLinearTransformerConfig(hidden_size=HEADS * WIDTH), PositionEncoding())


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixer = linear_mixer()
    context = Context(torch.arange(q.shape[2], device=q.device)[None])
    return mixer.attend_jointly(mixer.features.query(q), mixer.features.key(k), v, context, None)[0]


LINEAR: dict[str, Core] = {"linear": linear, "retention": retention, "normalised": normalised}
CORES: dict[str, Core] = {"softmax": softmax} | LINEAR


def inputs(length: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """q, k, v (1 h t d) as a mixer has them, with (t h d) in memory; then a gradient of the output."""
    torch.manual_seed(length)
    shape = (1, length, HEADS, WIDTH)
    return [torch.randn(shape, device=device).to(dtype).transpose(1, 2) for _ in range(4)]


def forward_and_backward(core: Core, q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    return torch.autograd.grad(core(q, k, v), (q, k, v), dy)


def forward_errors(parts: list[Tensor]) -> dict[str, float]:
    wide = [x.double() for x in parts[:3]]
    found = {}
    for name, core in LINEAR.items():
        with torch.no_grad():
            y = core(*parts[:3])
            with forced_form("sequential"):
                found[name] = error(y, core(*wide))
    return found


def gradient_errors(parts: list[Tensor]) -> dict[str, float]:
    wide = [x.double() for x in parts]
    form = "sequential" if parts[0].shape[2] <= RECURRENCE_WITH_GRADIENT else "chunkwise"
    found = {}
    for name, core in LINEAR.items():
        gradients = forward_and_backward(core, *parts)
        with forced_form(form):
            truth = forward_and_backward(core, *wide)
        found[name] = max(error(x, y) for x, y in zip(gradients, truth, strict=True))
    return found


def row(length: int, times: dict[str, Times], errors: dict[str, float]) -> list[str]:
    cells = [f"{length:,}", str(times["softmax"])]
    for name, wrong in errors.items():
        cells += [str(times[name]), f"**{ratio(times[name], times['softmax'])}**", f"{wrong:.0e}"]
    return cells


def measure(lengths: tuple[int, ...], seconds: float) -> str:
    header = ["L", "softmax, ms", *(x for name in LINEAR for x in (f"{name}, ms", "x softmax", "error"))]
    forward, backward = [], []
    for length in lengths:
        parts = inputs(length)
        with torch.no_grad():
            times = compare({name: partial(core, *parts[:3]) for name, core in CORES.items()}, seconds)
        forward.append(row(length, times, forward_errors(parts)))
        progress(" ".join(forward[-1]))
        both = {name: partial(forward_and_backward, core, *parts) for name, core in CORES.items()}
        backward.append(row(length, compare(both, seconds), gradient_errors(parts)))
        progress(" ".join(backward[-1]))
    return f"Forward:\n\n{table(header, forward)}\n\nForward and backward:\n\n{table(header, backward)}"


def main() -> None:
    arguments = start("attention", __doc__)
    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    publish("attention", arguments, measure(lengths, 0.5 if arguments.quick else 8.0))


if __name__ == "__main__":
    main()
