"""ActNorm: Kingma and Dhariwal 2018, Glow (arXiv:1807.03039): scale ⊙ (x + loc), fitted to the first batch."""

import torch
from torch import Tensor, nn

from .processes import sum_over_processes


class ActNorm(nn.Module):
    """x (b c h w) -> the same shape: each channel moved and scaled.

    The first batch that is seen while training makes `loc` and `scale`, so that this batch leaves with mean 0 and
    variance 1 in each channel; from then on both are learned. Over several processes it is the batch of all of them.
    """

    initialized: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.full_like(self.loc, x.numel() / x.shape[1], dtype=x.dtype)
        total = sum_over_processes(torch.cat((count, x.sum((0, 2, 3), keepdim=True))))
        mean = total[1:] / total[:1]
        squares = sum_over_processes((x - mean).square().sum((0, 2, 3), keepdim=True))
        self.loc.copy_(-mean)
        self.scale.copy_(1 / ((squares / (total[:1] - 1).clamp(min=1)).sqrt() + 1e-6))
        self.initialized.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.initialized:
            self.fit(x)
        return self.scale * (x + self.loc)
