r"""The cell of the HiPPO-RNN (arXiv:2008.07669, section 2.4): a gated unit that writes to a memory and reads it.

    [z_t, a_t] = x_t + h_(t-1) W_h^T + c_(t-1) W_c^T        g_t = \sigma(z_t)
    h_t = (1 - g_t) h_(t-1) + g_t tanh(a_t)
    f_t = h_t W_f^T + b_f                                   one number for each of m channels
    c_t = \bar A_t c_(t-1) + \bar B_t f_t                   n coefficients of each

The memory is linear, but what it is told depends on it through tanh: no form is parallel in time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._higher_order_ops import scan

from .dispatch import check_form, choose_form, is_tracing_graph
from .gated_memory_fast import fast
from .hippo import HippoMemory
from .hippo_tables import tables


@dataclass(frozen=True)
class CellWeights:
    """recurrent (2d d), memory (2d m*n), write (m d), bias (m)."""

    recurrent: Tensor
    memory: Tensor
    write: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.recurrent.to(dtype), self.memory.to(dtype), self.write.to(dtype), self.bias.to(dtype)


def gated_memory(
    x: Tensor,
    weights: CellWeights,
    memory: HippoMemory,
    state: tuple[Tensor, Tensor],
    *,
    method: str = "bilinear",
    count: Tensor | None = None,
    kept: Tensor | None = None,
    real: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run the cell over a sequence, in float32, or float64 where x or the state is.

    x: (b t 2d), the share of the input in z and a. memory: its measure and order n; a window counts tokens.
    state: h (b d) and c (b m n) before the first token, differentiable like the final ones. method: discretisation.
    count: (b t) or (1 t) integers: the number of each token in its own sequence, from 1, for a scaled measure.
    kept: (b t) bool or None: False where a sequence starts, which the state before does not reach.
    real: (b t) bool or None: False where a token leaves the state as it is.
    form: None lets dispatch choose; "fast" is a loop with its own, once differentiable backward, others a plain loop.
    Returns h (b t d) in the dtype of x, and the state after the last token.
    Raises ValueError: shapes that do not fit, a scaled measure without `count`, or an unknown form.
    """
    _check(x, weights, memory, state, count)
    form = choose_form(x.device, x.shape[1]) if form is None else check_form(form)
    wide = torch.promote_types(torch.promote_types(x.dtype, state[0].dtype), torch.float32)
    inputs, before = x.to(wide), (state[0].to(wide), state[1].to(wide))
    if form == "fast":
        y, *after = fast(inputs, *weights.to(wide), *before, count, kept, real, memory, method)
    elif is_tracing_graph() and form != "step":
        y, *after = _scan(inputs, weights.to(wide), before, memory, method, count, kept, real)
    else:
        y, *after = _loop(inputs, weights.to(wide), before, memory, method, count, kept, real)
    return y.to(x.dtype), (after[0], after[1])


def _cell(
    x: Tensor,
    weights: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    matrices: tuple[Tensor, Tensor],
    kept: Tensor | None,
    real: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One token: x (b 2d), matrices ((1|b) n n) or (n n), kept and real (b) -> h (b d) and c (b m n)."""
    (recurrent, read, write, bias), (h, c), (decay, value) = weights, state, matrices
    if kept is not None:
        h, c = h * kept[:, None], c * kept[:, None, None]
    gate, new = (x + h @ recurrent.T + c.flatten(1) @ read.T).chunk(2, dim=-1)
    after = torch.lerp(h, torch.tanh(new), torch.sigmoid(gate))
    told = after @ write.T + bias
    memory = c @ decay.mT + told[..., None] * value[..., None, :]
    if real is None:
        return after, memory
    return torch.where(real[:, None], after, h), torch.where(real[:, None, None], memory, c)


def _loop(
    x: Tensor,
    weights: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    memory: HippoMemory,
    method: str,
    count: Tensor | None,
    kept: Tensor | None,
    real: Tensor | None,
) -> tuple[Tensor, ...]:
    outputs, fixed = [], None if memory.scaled else tables(memory, method, None, x)
    for t, inputs in enumerate(x.unbind(1)):
        matrices = tables(memory, method, count[:, t], x) if fixed is None and count is not None else fixed
        assert matrices is not None
        flags = (None if part is None else part[:, t] for part in (kept, real))
        state = _cell(inputs, weights, state, matrices, *flags)
        outputs.append(state[0])
    return torch.stack(outputs, 1), state[0].clone(), state[1].clone()


def _scan(
    x: Tensor,
    weights: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    memory: HippoMemory,
    method: str,
    count: Tensor | None,
    kept: Tensor | None,
    real: Tensor | None,
) -> tuple[Tensor, ...]:
    """The loop as one operator of the graph, for programs that take any number of tokens."""
    yes = torch.ones_like(x[..., 0], dtype=torch.bool)
    numbers = yes.cumsum(1) if count is None else count.expand_as(yes)
    fixed = None if memory.scaled else tables(memory, method, None, x)

    def step(carry, inputs):
        token, number, keep, present = inputs
        matrices = tables(memory, method, number, token) if fixed is None else fixed
        after = _cell(token, weights, carry, matrices, keep, present)
        return after, after[0].clone()

    flags = (yes if part is None else part for part in (kept, real))
    per_token = tuple(part.transpose(0, 1).contiguous() for part in (x, numbers, *flags))
    after, outputs = scan(step, tuple(part.clone() for part in state), per_token)
    return outputs.transpose(0, 1), *after


def _check(
    x: Tensor, weights: CellWeights, memory: HippoMemory, state: tuple[Tensor, Tensor], count: Tensor | None
) -> None:
    (channels, d), n = weights.write.shape, memory.order
    if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] != 2 * d:
        raise ValueError(f"x must be (b t {2 * d}) with at least one token, not {tuple(x.shape)}")
    expected = {"recurrent": (2 * d, d), "memory": (2 * d, channels * n), "bias": (channels,)}
    for name, shape in expected.items():
        if getattr(weights, name).shape != shape:
            raise ValueError(f"the weights `{name}` must be {shape}, not {tuple(getattr(weights, name).shape)}")
    for name, part, shape in zip("hc", state, ((x.shape[0], d), (x.shape[0], channels, n)), strict=True):
        if part.shape != shape:
            raise ValueError(f"the state {name} must be {shape}, not {tuple(part.shape)}")
    if memory.measure == "fous":
        raise ValueError("the measure of a cell must be real, not 'fous'")
    if memory.scaled and (count is None or count.dim() != 2 or count.shape[1] != x.shape[1]):
        raise ValueError(f"a scaled measure needs `count` (b t), not {None if count is None else tuple(count.shape)}")
