r"""The HiPPO-RNN: a gated cell with a memory of its own past. Gu et al. 2020 (arXiv:2008.07669), section 2.4.

    g_t = \sigma(W_g [x_t, h_(t-1), c_(t-1)])
    h_t = (1 - g_t) h_(t-1) + g_t tanh(W_a [x_t, h_(t-1), c_(t-1)])
    c_t = \bar A_t c_(t-1) + \bar B_t (W_f h_t)              out = h_t W_o

State: h (b d) and c (b m n) in float32; LegS also the number (b) of tokens seen.  Time: O(t), token by token.
c holds n coefficients of each of m signals' past; A and B are HiPPO's and are not learned.
"""

import torch
from torch import Tensor, nn

from ..ops.diagonal_recurrence import continues
from ..ops.gated_memory import CellWeights, gated_memory
from ..ops.hippo import HippoMemory
from ..state import Context, State, count_tokens


class HippoCell(nn.Module):
    """x (b t d) -> (b t d), for a config with hidden_size, measure, memory_order and memory_channels."""

    def __init__(self, config) -> None:
        super().__init__()
        width, self.method = config.hidden_size, config.discretization
        self.memory = HippoMemory(config.measure, config.memory_order, float(config.window))
        self.channels = config.memory_channels
        self.in_proj = nn.Linear(width, 2 * width)
        self.hidden_weight = nn.Parameter(torch.empty(2 * width, width))
        self.memory_weight = nn.Parameter(torch.empty(2 * width, self.channels * config.memory_order))
        self.write_weight = nn.Parameter(torch.empty(self.channels, width))
        self.write_bias = nn.Parameter(torch.empty(self.channels))
        self.out_proj = nn.Linear(width, width, bias=False)

    def initialize(self, std: float) -> None:
        for weight in (self.hidden_weight, self.memory_weight, self.write_weight):
            nn.init.normal_(weight, std=std)
        nn.init.zeros_(self.write_bias)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        h = torch.zeros(batch, self.hidden_weight.shape[1], dtype=wide, device=device)
        c = torch.zeros(batch, self.channels, self.memory.order, dtype=wide, device=device)
        if not self.memory.scaled:
            return h, c
        return h, c, torch.zeros(batch, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        h, c, *count = self.initial_state(x.shape[0], x.dtype, x.device) if state is None else state
        seen = None
        if self.memory.scaled:
            before = None if state is None else count[0]
            seen = context.once("tokens seen", lambda: count_tokens(context, before, x.shape[0], x.shape[1]))
        weights = CellWeights(self.hidden_weight, self.memory_weight, self.write_weight, self.write_bias)
        y, after = gated_memory(
            self.in_proj(x),
            weights,
            self.memory,
            (h, c),
            method=self.method,
            count=seen,
            kept=None if context.segments is None else continues(context.segments),
            real=context.mask,
        )
        return self.out_proj(y.to(x.dtype)), after if seen is None else (*after, seen[:, -1].clone())
