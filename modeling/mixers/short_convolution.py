"""The short depthwise convolution of state-space models as a layer with weights of its own.

    y_t = act(b + sum_j w_j x_(t - k + 1 + j))

It stands before the scans of Mamba (arXiv:2312.00752). State: the last k - 1 inputs (b k-1 d), before the
activation, in float32 where they are of half precision.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.causal_convolution import causal_convolution
from ..state import Context


class ShortConvolution(nn.Module):
    """x (b t d) -> (b t d), 0 at padding.

    Where the context is not causal the k tokens are centred, the odd one coming after.
    weight (d k), drawn as torch draws that of nn.Conv1d, and bias (d) or None, zeros at first.
    """

    bias: nn.Parameter | None

    def __init__(self, width: int, kernel: int, bias: bool, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel, self.act = kernel, act
        self.weight = nn.Parameter(torch.empty(width, kernel))
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if bias else None)

    def initialize(self, std: float) -> None:
        bound = 1 / math.sqrt(self.kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, self.kernel - 1, self.weight.shape[0], dtype=wide, device=device)

    def forward(self, x: Tensor, context: Context, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = causal_convolution(
            x,
            self.weight,
            self.bias,
            state=state,
            mask=context.mask,
            segments=context.segments,
            ahead=0 if context.causal else self.kernel // 2,
        )
        y = self.act(y)
        if context.mask is not None:  # what stands at padding depends on no other padding
            y = y * context.mask[..., None]
        return y, state.to(torch.promote_types(state.dtype, torch.float32))
