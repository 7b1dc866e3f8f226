"""A parameter that is read as a whole, in a module of its own: a call is what offloading and its kin can see.

weight ~ N(0, std^2), or 0
"""

import torch
from torch import Tensor, nn


class Stored(nn.Module):
    """stored() -> weight, of the shape given. It is a copy: where a file lies in memory would change the last bits."""

    def __init__(self, *shape: int, zero: bool = False) -> None:
        super().__init__()
        self.weight, self.zero = nn.Parameter(torch.empty(shape)), zero

    def initialize(self, std: float) -> None:
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=std)

    def forward(self) -> Tensor:
        return self.weight.clone()
