r"""Memories of a signal by name: how samples enter them, and what can be read from them again.

    legs, fous      the whole past, scaled to its length, in Legendre polynomials and Fourier series
    legt, fout      the last `window` units of time, sharply cut; fout_biased: the factor of `fout` left out
    lagt            the past under e^{-age / (2 window)}, in Laguerre polynomials

Every memory is the equation c' = A c + B u of hippo_measures.py, in a discretisation of discretisation.py
(arXiv:2008.07669; Fourier: arXiv:2206.12037).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .discretisation import discretise, discretise_scaled
from .hippo_measures import check_order, fous, fout, lagt, legs, legt, require_window
from .orthogonal import fourier, laguerre, orthonormal_legendre

MEASURES = ("legs", "legt", "lagt", "fout", "fout_biased", "fous")
SCALED = ("legs", "fous")
BLOCK = 64


@dataclass(frozen=True)
class HippoMemory:
    """`order` coefficients of a signal's past under `measure`, one of MEASURES; `window` in units of time.

    The memories of the whole past, SCALED, take no notice of `window`. Coefficients are real, but for fous, whose are
    complex. Raises ValueError for an unknown measure, an order below 1 or a window not above 0.
    """

    measure: str
    order: int
    window: float = 1.0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {self.measure!r}")
        check_order(self.order)
        require_window(self.window)

    @property
    def scaled(self) -> bool:
        return self.measure in SCALED

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (n n) and B (n), float64 or complex128, of orthonormal functions."""
        if self.measure == "legt":
            return legt(self.order, self.window)
        if self.measure == "lagt":
            matrix, vector = lagt(self.order)
            return matrix / self.window, vector / self.window
        if self.measure.startswith("fout"):
            return fout(self.order, self.window, corrected=self.measure == "fout")
        return legs(self.order) if self.measure == "legs" else fous(self.order)

    def steps(
        self, count: Tensor | None = None, step: float = 1.0, method: str = "bilinear", alpha: float | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""\bar A (*s n n) and \bar B (*s n) for the samples with the numbers `count` (*s), counted from 1.

        Without *s where the measure is not scaled: then every sample has the same. Raises ValueError where a scaled
        one is asked without `count`.
        """
        matrices = self.matrices()
        if self.scaled:
            if count is None:
                raise ValueError(f"the measure {self.measure!r} needs `count`, the numbers of the samples")
            return discretise_scaled(*matrices, count, method, alpha)
        return discretise(*matrices, step, method, alpha)

    def encode(
        self, signal: Tensor, step: float = 1.0, method: str = "bilinear", alpha: float | None = None
    ) -> Tensor:
        """signal (*s t), one sample every `step` -> the coefficients (*s n) after the last, through the recurrence.

        Computed in float64. The sample u_k stands for the time from (k-1) to k steps.
        """
        signal = signal.double()
        state = torch.zeros(*signal.shape[:-1], self.order, dtype=self.matrices()[0].dtype)
        for start in range(0, signal.shape[-1], BLOCK):
            samples = signal[..., start : start + BLOCK]
            count = torch.arange(start + 1, start + samples.shape[-1] + 1)
            decays, inputs = self.steps(count, step, method, alpha)
            for i, sample in enumerate(samples.unbind(-1)):
                decay, value = (decays[i], inputs[i]) if self.scaled else (decays, inputs)
                state = state @ decay.T + sample[..., None] * value
        return state

    def project(self, signal: Tensor, step: float = 1.0) -> Tensor:
        """signal (*s t) -> the coefficients (*s n) that the memory approximates: integrals over the samples."""
        length = signal.shape[-1]
        ages = step * (length - 0.5 - torch.arange(length, dtype=torch.float64))
        functions = self.functions(ages, step * length).conj() * (ages < self.reach(step * length))
        share = step / self.reach(step * length)
        if self.measure in ("legs", "legt"):
            share = 2 * share
        elif self.measure == "lagt":
            share = step / self.window
        return signal.to(functions.dtype) @ functions.T * share

    def reconstruct(self, coefficients: Tensor, ages: Tensor, past: float | None = None) -> Tensor:
        """coefficients (*s n) at the time T, ages (p) -> the signal at the times T - age (*s p), real.

        `past`: the length of the whole past in the unit of `ages`, which scaled measures need: ValueError without.
        """
        if self.scaled and past is None:
            raise ValueError(f"the measure {self.measure!r} needs `past`, the length of what was read")
        functions = self.functions(ages.double(), past)
        return (coefficients.to(functions.dtype) @ functions).real

    def reach(self, past: float | None) -> float:
        """How far back the memory sees."""
        if self.measure == "lagt":
            return float("inf")
        return self.window if past is None or not self.scaled else past

    def functions(self, ages: Tensor, past: float | None = None) -> Tensor:
        """The functions (n p) whose sum the signal is, at ages (p)."""
        if self.measure == "lagt":
            return laguerre(ages / self.window, self.order)
        place = ages / self.reach(past)
        if self.measure in ("legs", "legt"):
            return orthonormal_legendre(1 - 2 * place, self.order)
        return fourier(-place, self.order) if self.measure == "fous" else fourier(place, self.order, real=True)


def rmse(found: Tensor, expected: Tensor) -> float:
    """The root of the mean of the squared differences."""
    return (found - expected).square().mean().sqrt().item()
