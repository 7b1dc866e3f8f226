"""S4: Gu et al. 2021, Efficiently Modeling Long Sequences with Structured State Spaces (arXiv:2111.00396).

    y = kernel(u) + D u                       one system for each channel, see s4_kernel.py     eq. 1, 2, 5
    out = GLU(W gelu(y) + b)                  GLU(a, g) = a sigmoid(g)

State: what the kernel says.  Time: O(t log t) by convolution, O(1) for a token.
"""

import torch
from torch import Tensor, nn

from ..activation import activation
from ..state import Context, State
from .rtf import RationalKernel
from .s4_diagonal import DiagonalKernel
from .s4_dplr import LowRankKernel
from .s4_dss import DSSKernel
from .s4_kernel import StateSpaceKernel
from .s5 import S5Kernel

KERNELS: dict[str, type[StateSpaceKernel]] = {
    "s4": LowRankKernel,
    "s4d": DiagonalKernel,
    "dss": DSSKernel,
    "s5": S5Kernel,
    "rtf": RationalKernel,
}


class S4(nn.Module):
    """x (b t d) -> (b t d), for a NoriaS4Config."""

    def __init__(self, config) -> None:
        super().__init__()
        width = config.hidden_size
        self.kernel = KERNELS[config.kernel](config)
        self.D = nn.Parameter(torch.empty(width))
        self.act = activation(config.hidden_act)
        self.dropout = nn.Dropout(config.dropout)
        self.output_linear = nn.Linear(width, 2 * width)

    def initialize(self, std: float) -> None:
        nn.init.normal_(self.D)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        return self.kernel.initial_state(batch, dtype, device)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):  # transforms and poles know no half precision
            y, state = self.kernel(x, context, state)
        y = self.dropout(self.act((y + self.D * x).to(x.dtype)))
        return nn.functional.glu(self.output_linear(y)), state
