"""Norms of a residual stream that is wider than the weights: computed in float32, returned in the weights' dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideRMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight for x (... d) of any floating dtype (arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(self.weight.dtype)


class WideLayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, likewise (arXiv:1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


WIDE_NORMS: dict[str, type[WideRMSNorm] | type[WideLayerNorm]] = {"rms_norm": WideRMSNorm, "layer_norm": WideLayerNorm}
