"""An RMS norm beside a gate, over each group of channels alone: Dao and Gu 2024 (arXiv:2405.21060, section 7.2).

rms(y * silu(z)) * w    or, with the norm before the gate,    rms(y) * w * silu(z)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedRMSNorm(nn.Module):
    """y, z (.. d) -> (.. d) in the dtype of the weight; computed in float32, or float64 where y is."""

    def __init__(self, width: int, groups: int, eps: float, before_gate: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.before_gate = groups, eps, before_gate
        self.weight = nn.Parameter(torch.empty(width))

    def initialize(self, std: float) -> None:
        nn.init.ones_(self.weight)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        wide = torch.promote_types(y.dtype, torch.float32)
        y, gate = y.to(wide), F.silu(z.to(wide))
        normed = self.normalize(y) * gate if self.before_gate else self.normalize(y * gate)
        return normed.to(self.weight.dtype)

    def normalize(self, y: Tensor) -> Tensor:
        grouped = y.unflatten(-1, (self.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(y.dtype)
