"""Batch norm over the real tokens of a batch: Ioffe and Szegedy 2015 (arXiv:1502.03167)."""

import torch
from torch import Tensor, nn


class TokenBatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias for x (b t d), each channel over the tokens where mask (b t) holds.

    While training the statistics are those of the batch, and the running ones, which count afterwards, become
    momentum old + (1 - momentum) new; the variance is the biased one in both, as in Flax.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def initialize(self, std: float) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        if self.training:
            mean, var = self.measure(x.to(wide), mask)
        scale = torch.rsqrt(var + self.eps) * self.weight.to(wide)
        return torch.addcmul(self.bias.to(wide), x.to(wide) - mean, scale).to(x.dtype)

    def measure(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (d) of the real tokens, which the running statistics follow."""
        real = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
        count = real.sum().clamp(min=1)
        mean = (x * real).sum((0, 1)) / count
        var = ((x - mean).square() * real).sum((0, 1)) / count
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(new.detach().to(running.dtype), 1 - self.momentum)
        return mean, var
