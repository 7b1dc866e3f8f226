"""Rotary position embedding: Su et al. 2021, RoFormer (arXiv:2104.09864), equation 34.

(R_m x)_2i   = x_2i cos(m theta_i) - x_2i+1 sin(m theta_i)
(R_m x)_2i+1 = x_2i+1 cos(m theta_i) + x_2i sin(m theta_i),     theta_i = base^(-2i/d)

(R_m q)^T (R_n k) = q^T R_(n-m) k: only the distance remains.  Pairs are neighbours (interleaved), as in the paper:
x_2i + i x_2i+1 is a complex number that is multiplied by e^(i m theta_i).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..state import Context
from .base import PositionEncoding


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def geometric(base: float, pairs: int, steps: float, device: torch.device) -> Tensor:
    """base^(-i/steps) for i = 0 .. pairs-1, (pairs) in the widest dtype of the device."""
    return base ** (-torch.arange(pairs, dtype=wide_dtype(device), device=device) / steps)


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (b 1 t d/2) of positions (b t) times frequencies (d/2), or (b 1 t d/2) where each token has its own.

    Angles are reduced in float64 where the device has it: at position 65,536 float32 would be wrong by 0.004 rad.
    """
    wide = wide_dtype(positions.device)
    angles = positions.to(wide)[:, None, :, None] * frequencies.to(wide)
    angles = torch.remainder(angles, 2 * math.pi).to(dtype)
    return angles.cos(), angles.sin()


class Angles(NamedTuple):
    """cos and sin (b 1 t d/2), and e^(i angle) of the same shape where complex numbers can be used."""

    cos: Tensor
    sin: Tensor
    turns: Tensor | None


def make_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Angles:
    """The angles of `rotation`, cos and sin multiplied by `factor`."""
    cos, sin = rotation(positions, frequencies, dtype)
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    # Compilers fuse the real form and know no complex numbers.
    return Angles(cos, sin, None if torch.compiler.is_compiling() else torch.complex(cos, sin))


def holds_pairs(x: Tensor) -> bool:
    """Whether each pair of neighbouring channels lies in memory as a complex number does."""
    return x.stride(-1) == 1 and all(step % 2 == 0 for step in (x.storage_offset(), *x.stride()[:-1]))


def rotate_pairs(x: Tensor, angles: Angles) -> Tensor:
    """Turn neighbouring channels of x (b h t d) by angles (b 1 t d/2).

    One complex product reads and writes x once, in the order in which x lies in memory: 4 to 20 times as fast as the
    sums of strided halves (benchmarks/rotary.py).
    """
    if angles.turns is not None and holds_pairs(x):
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * angles.turns
        return torch.view_as_real(turned).flatten(-2)
    even, odd = split_pairs(x)
    return torch.stack((even * angles.cos - odd * angles.sin, odd * angles.cos + even * angles.sin), dim=-1).flatten(
        -2
    )


def split_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second channel of each pair of x (b h t d)."""
    return x[..., ::2], x[..., 1::2]


class Rotary(PositionEncoding):
    """theta_i = base^(-2i/d), or base^(-i/(d/2-1)) with `endpoint`, as torchscale's RetNet has it.

    rotated (int): the first channels that are turned, the others keep their values; by default all `dim`.
    values (bool): values are turned too.
    Frequencies are computed in the forward call and kept in no buffer, which from_pretrained would leave unset. Raises
    ValueError where the channels to turn do not come in pairs.
    """

    rotates = staticmethod(rotate_pairs)
    split = staticmethod(split_pairs)

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        endpoint: bool = False,
        rotated: int | None = None,
        values: bool = False,
    ) -> None:
        super().__init__()
        rotated = dim if rotated is None else rotated
        if dim % 2:
            raise ValueError(f"rotary positions turn pairs of channels, so the head size must be even, not {dim}.")
        if rotated % 2 or not 0 < rotated <= dim:
            raise ValueError(f"of {dim} channels an even number from 2 to {dim} can be turned, not {rotated}.")
        self.dim, self.base, self.endpoint, self.rotated, self.values = dim, float(base), endpoint, rotated, values
        self.given: Sequence[float] | None = None
        self.factor = 1.0

    def take(self, frequencies: Sequence[float], factor: float = 1.0) -> None:
        """Use these frequencies (rotated/2) in place of the powers of `base`; cos and sin are multiplied by `factor`.

        Raises ValueError for more frequencies than pairs of channels.
        """
        if not 0 < 2 * len(frequencies) <= self.dim:
            raise ValueError(f"{len(frequencies)} frequencies do not fit a head of {self.dim // 2} pairs of channels.")
        self.given, self.rotated, self.factor = tuple(frequencies), 2 * len(frequencies), factor

    def frequencies(self, device: torch.device) -> Tensor:
        """theta (rotated/2), float64 where the device has it."""
        if self.given is not None:
            return torch.tensor(self.given, dtype=wide_dtype(device), device=device)
        pairs = self.rotated // 2
        steps = max(pairs - 1, 1) if self.endpoint else pairs
        return geometric(self.base, pairs, steps, device)

    def angles(self, dtype: torch.dtype, device: torch.device, context: Context) -> Angles:
        """Those of the new tokens, which layers with equal frequencies share."""
        given = None if self.given is None else tuple(self.given)
        return context.once(
            ("rotary", self.rotated, self.base, self.endpoint, given, self.factor, dtype),
            lambda: make_angles(context.positions, self.frequencies(device), dtype, self.factor),
        )

    def turned(self, x: Tensor, angles: Angles) -> Tensor:
        """The first channels of x (b h t d) by their angles, in x's dtype."""
        if self.rotated == self.dim:
            return self.rotates(x.to(angles.cos.dtype), angles).to(x.dtype)
        first, rest = x[..., : self.rotated], x[..., self.rotated :]
        return torch.cat((self.rotates(first.to(angles.cos.dtype), angles).to(x.dtype), rest), dim=-1)

    def rotate(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        angles = self.angles(torch.promote_types(q.dtype, torch.float32), q.device, context)
        return self.turned(q, angles), self.turned(k, angles)

    def turn(self, v: Tensor, context: Context) -> Tensor:
        if not self.values:
            return v
        return self.turned(v, self.angles(torch.promote_types(v.dtype, torch.float32), v.device, context))
