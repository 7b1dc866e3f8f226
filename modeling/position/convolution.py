"""Positions that leak from zero padding: Islam, Jia and Bruce 2020, How Much Position Information Do Convolutional
Neural Networks Encode? (arXiv:2001.08248).

x_k + W [x_(k-1); x_k; x_(k+1)] + b,     x_j = 0 outside the sequence

Only the zeros tell where a sequence begins and ends: with circular padding, what is constant stays constant.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..state import Context
from .base import PositionEncoding


class Convolution(PositionEncoding):
    """A convolution of width 3 beside the embeddings. Padding and other packed sequences are outside.

    Raises ValueError in a causal call: a token would see the next one.
    """

    bidirectional_only = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(3 * dim, dim)

    def add(self, x: Tensor, context: Context, ids: Tensor | None = None) -> Tensor:
        if context.causal:
            raise ValueError("the 'convolution' encoding shows each token the next one: it cannot be causal.")
        return x + self.kernel(torch.cat(neighbours(x, context), dim=-1))


def neighbours(x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """x_(k-1), x_k and x_(k+1), each (b t d), with zeros where they lie outside the sequence of x_k."""
    inside = x if context.mask is None else x.masked_fill(~context.mask[..., None], 0)
    before, after = F.pad(inside, (0, 0, 1, 0))[:, :-1], F.pad(inside, (0, 0, 0, 1))[:, 1:]
    if context.segments is not None:
        begins = F.pad(context.segments.diff(dim=1) != 0, (1, 1), value=True)[..., None]
        before, after = before.masked_fill(begins[:, :-1], 0), after.masked_fill(begins[:, 1:], 0)
    return before, x, after
