"""LRU's recurrence near the unit circle: what undoing the rounding of lambda gains and costs, 384 complex states.

ours        `invariant_recurrence`: complex64, the rounding of lambda undone
plain       `diagonal_recurrence` with lambda rounded to complex64
error       of all states, relative to the largest, against complex128 with the same lambda
"""

from __future__ import annotations

from functools import partial

import torch
from harness import Times, compare, progress, publish, ratio, start, table
from torch import Tensor

from noria.modeling.ops.diagonal_recurrence import diagonal_recurrence
from noria.modeling.ops.invariant_recurrence import invariant_recurrence

STATES = 384
RINGS = ((0.0, 1.0), (0.9, 0.999), (0.999, 0.9999), (0.9999, 0.99999))
LENGTHS = (2048, 16384)


def problem(ring: tuple[float, float], length: int) -> tuple[Tensor, Tensor]:
    """lambda (n) evenly over a ring, complex128, and inputs (1 length n) that keep the states at unit size."""
    torch.manual_seed(length)
    area, turn = torch.rand(2, STATES, dtype=torch.float64)
    square = area * (ring[1] ** 2 - ring[0] ** 2) + ring[0] ** 2
    inputs = torch.randn(1, length, STATES, dtype=torch.complex64) * (1 - square).sqrt().float()
    return torch.polar(square.sqrt(), 6.28 * turn), inputs


def race(ring: tuple[float, float], length: int, seconds: float) -> tuple[dict[str, Times], dict[str, float]]:
    decay, inputs = problem(ring, length)
    candidates = {
        "ours": partial(invariant_recurrence, decay, inputs),
        "plain": partial(diagonal_recurrence, decay.to(inputs.dtype), inputs),
    }
    with torch.inference_mode():
        exact = diagonal_recurrence(decay, inputs.to(decay.dtype))[0]
        errors = {
            name: ((run()[0] - exact).abs().max() / exact.abs().max()).item() for name, run in candidates.items()
        }
        return compare(candidates, seconds), errors


def main() -> None:
    arguments = start("lru", __doc__)
    rows = []
    for length in LENGTHS[:1] if arguments.quick else LENGTHS:
        for ring in RINGS:
            progress(f"{length} tokens, {ring}")
            times, errors = race(ring, length, 0.5 if arguments.quick else 6.0)
            cells = [f"{ring[0]:g} to {ring[1]:g}", str(length), f"{errors['ours']:.1e}", f"{errors['plain']:.1e}"]
            rows.append(
                [*cells, *(str(times[name]) for name in ("ours", "plain")), ratio(times["ours"], times["plain"])]
            )
    head = ["modulus of lambda", "L", "error, ours", "error, plain", "ours, ms", "plain, ms", "ours / plain"]
    publish("lru", arguments, table(head, rows))


if __name__ == "__main__":
    main()
