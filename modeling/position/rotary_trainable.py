"""Rotary positions whose frequencies are learned, one set for each layer (arXiv:2104.09864, section 3.4.2).

theta_i = base^(-2i/d) e^(w_i),   w_i = 0 at the start
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..state import Context
from .rotary import Angles, Rotary, make_angles
from .stored import Stored


class RotaryTrainable(Rotary):
    """Frequencies stay positive and begin as the fixed ones exactly; weight decay draws them back there.

    What is stored is w (rotated/2): near 0 it keeps its precision in any dtype.
    """

    def __init__(self, dim: int, base: float = 10000.0, rotated: int | None = None, values: bool = False) -> None:
        super().__init__(dim, base, rotated=rotated, values=values)
        self.log_ratio = Stored(self.rotated // 2, zero=True)

    def frequencies(self, device: torch.device) -> Tensor:
        fixed = super().frequencies(device)
        return fixed * self.log_ratio().to(fixed.dtype).exp()

    def angles(self, dtype: torch.dtype, device: torch.device, context: Context) -> Angles:
        """Each layer has its own, with their gradient."""
        return make_angles(context.positions, self.frequencies(device), dtype, self.factor)

    def take(self, frequencies: Sequence[float], factor: float = 1.0) -> None:
        if len(frequencies) != len(self.log_ratio.weight):
            raise ValueError(
                f"{len(self.log_ratio.weight)} trainable frequencies cannot begin as {len(frequencies)} others."
            )
        super().take(frequencies, factor)
