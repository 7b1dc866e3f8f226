"""Codes numbered by their place in a list of those in use, as taming's `remap` has it."""

import torch
from torch import Tensor, nn

from ..mixers.step_size import fill


class UsedCodes(nn.Module):
    """The list, as a buffer, and the maps in both directions.

    unknown: what becomes of a code that is not listed: a place in the list, "random" for any place, "extra" for one
    more number, which stands for the list's first code.
    """

    used: Tensor

    def __init__(self, used: list[int] | tuple[int, ...], unknown: int | str) -> None:
        super().__init__()
        self.listed, self.unknown = list(used), unknown
        self.register_buffer("used", torch.tensor(self.listed))

    def initialize(self, std: float | None) -> None:
        fill(self.used, torch.tensor(self.listed))

    def place(self, codes: Tensor) -> Tensor:
        """codes of the whole codebook (...) -> their places in the list."""
        order = self.used.argsort()
        found = torch.searchsorted(self.used[order], codes).clamp(max=len(self.used) - 1)
        places = order[found]
        return torch.where(self.used[places] == codes, places, self.substitute(codes))

    def substitute(self, codes: Tensor) -> Tensor:
        if self.unknown == "random":
            return torch.randint_like(codes, len(self.used))
        return torch.full_like(codes, len(self.used) if self.unknown == "extra" else int(self.unknown))

    def restore(self, places: Tensor) -> Tensor:
        """places in the list (...) -> codes of the whole codebook."""
        return self.used[places.where(places < len(self.used), 0)]
