"""State-space kernels: what the response of S4D and S4 costs beside its convolution, 256 wide, 64 states.

convolution   by the Fourier transform, kernel given
s4d, s4       the response K alone, from the parameters

Beside each the largest error of K against the recurrence in float64, relative to the largest entry.
"""

from __future__ import annotations

from functools import partial

import torch
from harness import Times, compare, progress, publish, ratio, start, table
from torch import Tensor

from noria import NoriaS4Config
from noria.modeling.mixers.s4 import KERNELS
from noria.modeling.mixers.s4_kernel import ConvolutionKernel
from noria.modeling.ops.fft_convolution import fft_convolution

WIDTH = 256
LENGTHS = (1024, 4096, 16384)


def make_kernel(name: str) -> ConvolutionKernel:
    torch.manual_seed(0)
    kernel = KERNELS[name](NoriaS4Config(hidden_size=WIDTH, kernel=name))
    kernel.initialize(0.02)
    return kernel


def response(kernel: ConvolutionKernel, length: int) -> Tensor:
    return kernel.impulse(kernel.system(), length)


def error(kernel: ConvolutionKernel, length: int) -> float:
    """Of the response in float32, against a token after the other in float64."""
    found, exact = response(kernel, length)[0].double(), kernel.double()
    pace, state = exact.pace(), exact.initial_state(1, torch.float64, torch.device("cpu"))
    steps = []
    for place in range(length):
        y, state = exact.step(pace, torch.full((1, WIDTH), float(place == 0), dtype=torch.float64), state)
        steps.append(y[0])
    expected = torch.stack(steps, dim=1)
    kernel.float()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def race(length: int, kernels: dict[str, ConvolutionKernel], seconds: float) -> dict[str, Times]:
    u, given = torch.randn(1, WIDTH, length), response(kernels["s4d"], length)[0]
    candidates = {"convolution": partial(fft_convolution, u, given)}
    candidates |= {name: partial(response, kernel, length) for name, kernel in kernels.items()}
    return compare(candidates, seconds)


@torch.inference_mode()
def measure(lengths: tuple[int, ...], seconds: float) -> str:
    rows, kernels = [], {name: make_kernel(name) for name in ("s4d", "s4")}
    for length in lengths:
        times = race(length, kernels, seconds)
        for name, found in times.items():
            lost = f"{error(kernels[name], length):.1e}" if name in kernels else ""
            rows.append([f"{length:,}", name, str(found), ratio(found, times["convolution"]), lost])
            progress(" ".join(rows[-1]))
    return table(["L", "what", "ms", "x convolution", "error"], rows)


def main() -> None:
    arguments = start("s4", __doc__)
    lengths = LENGTHS[:1] if arguments.quick else LENGTHS
    publish("s4", arguments, measure(lengths, 1.0 if arguments.quick else 8.0))


if __name__ == "__main__":
    main()
