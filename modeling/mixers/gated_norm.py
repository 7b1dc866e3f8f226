"""An RMS norm beside a gate, over each group of channels alone: Dao and Gu 2024 (arXiv:2405.21060, section 7.2).

out = rms(y * silu(z)) * w    or, with the norm before the gate,    out = rms(y) * w * silu(z)
"""

import torch
from torch import Tensor, nn

from ..ops.gated_norm import gated_rms_norm


class GatedRMSNorm(nn.Module):
    """y, z (b t d) -> (b t d) in the dtype of the weight; computed in float32, or float64 where y is."""

    def __init__(self, width: int, groups: int, eps: float, before_gate: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.before_gate = groups, eps, before_gate
        self.weight = nn.Parameter(torch.empty(width))

    def initialize(self, std: float) -> None:
        nn.init.ones_(self.weight)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(y, z, self.weight, self.groups, self.eps, self.before_gate)
