"""xPos: Sun et al. 2022, A Length-Extrapolatable Transformer (arXiv:2212.10554), equation 12.

q_n -> R_n q_n zeta^(n/B),   k_m -> R_m k_m zeta^(-m/B)
zeta_i = (2i/d + gamma) / (1 + gamma),   B = 512,   gamma = 0.4

so that q_n k_m^T holds zeta^((n-m)/B): pairs of channels that turn fast fade with the distance.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..state import Context
from .base import known_keys
from .rotary import Rotary, wide_dtype


class XPos(Rotary):
    """For causal attention alone: towards keys that lie ahead the factor grows without bound.

    Rotated keys are cached without their factor. In each call n and m count from the middle of its queries, which
    leaves the products as they are: a call of up to 36,000 tokens overflows nowhere in float32 and bfloat16, 290,000
    in float64 and 4,500 in float16, and cached text before it may have any length.
    Raises ValueError in the forward call of a bidirectional model.
    """

    causal_only = True

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        rotated: int | None = None,
        values: bool = False,
        gamma: float = 0.4,
        scale_base: float = 512.0,
    ) -> None:
        super().__init__(dim, base, rotated=rotated, values=values)
        if gamma <= 0 or scale_base <= 0:
            raise ValueError(f"`gamma` ({gamma}) and `scale_base` ({scale_base}) of xPos must be positive.")
        self.gamma, self.scale_base = float(gamma), float(scale_base)

    def log_zeta(self, device: torch.device) -> Tensor:
        """log zeta_i (rotated/2), negative, float64 where the device has it."""
        places = torch.arange(0, self.rotated, 2, dtype=wide_dtype(device), device=device) / self.rotated
        return torch.log((places + self.gamma) / (1 + self.gamma))

    def factors(self, keys: Tensor, dtype: torch.dtype, context: Context) -> tuple[Tensor, Tensor]:
        """What queries (b 1 t d) and keys (b 1 s d) are multiplied by."""
        wide, queries = wide_dtype(keys.device), context.positions
        middle = (queries.amin(dim=1, keepdim=True) + queries.amax(dim=1, keepdim=True)).to(wide) / 2
        # Beyond this only what the causal mask or a static cache hides is reached, which must stay finite.
        most = 0.95 * math.log(torch.finfo(dtype).max)
        found = []
        for places, sign in ((queries, 1.0), (keys, -1.0)):
            steps = sign * (places.to(wide) - middle) / self.scale_base
            exponents = (steps[:, None, :, None] * self.log_zeta(keys.device)).clamp(-most, most)
            factor = exponents.exp().repeat_interleave(2, dim=-1)
            found.append(F.pad(factor, (0, self.dim - self.rotated), value=1.0).to(dtype))
        return found[0], found[1]

    def scale(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if not context.causal:
            raise ValueError(
                "xPos grows towards keys that lie ahead: it takes a causal model, not a bidirectional one."
            )
        q_factor, k_factor = context.once(
            ("xpos", self.dim, self.rotated, self.gamma, self.scale_base, q.dtype),
            lambda: self.factors(known_keys(context), q.dtype, context),
        )
        return q * q_factor, k * k_factor
