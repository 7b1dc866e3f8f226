r"""The diagonal recurrence with decays that are constant in time, to the last bits however long it remembers.

    h_t = z h_(t-1) + u_t

Rounded to complex64, z is off by a factor exp(-\delta), which t tokens raise to the power t. It is undone: with inputs
exp(-t \delta) u_t the recurrence of the rounded z gives exp(-t \delta) h_t.
"""

import torch
from torch import Tensor

from .alignment import from_left, to_left
from .diagonal_recurrence import diagonal_recurrence
from .recording import is_recording

BLOCK = 64


def invariant_recurrence(
    decay: Tensor,
    inputs: Tensor,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run h_t = z h_(t-1) + u_t over a sequence.

    Args:
        decay: z (n), complex128.
        inputs: u (b t n), complex64 or complex128.
        state: (b n) before the first token, of the inputs' dtype, or None for zeros.
        segments: (b t) integers that never decrease, or None: see diagonal_recurrence.
        mask: (b t) booleans, or None: where it is False nothing is stored and nothing forgotten, and h is undefined.

    Returns:
        h (b t n), and the state (b n) after the last token, of the inputs' dtype.
    """
    if mask is None:
        return _run(decay, inputs, state, segments)
    order, count = to_left(mask), mask.sum(1)[:, None]
    segments = None if segments is None else segments.gather(1, order)
    h, _ = _run(decay, _choose(inputs, order) * mask.gather(1, order)[..., None], state, segments)
    last = _choose(h, (count - 1).clamp(min=0))[:, 0]
    before = torch.zeros_like(last) if state is None else state
    return _choose(h, from_left(mask)), torch.where(count > 0, last, before)


def _run(decay: Tensor, inputs: Tensor, state: Tensor | None, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    narrow, length = inputs.dtype, inputs.shape[1]
    if length == 1:  # one token costs little: it is computed wide
        inputs, state = inputs.to(decay.dtype), None if state is None else state.to(decay.dtype)
    if inputs.dtype == decay.dtype:
        h, last = diagonal_recurrence(decay, inputs, state=state, segments=segments)
        return h.to(narrow), last.to(narrow)
    rounded = decay.to(narrow)
    # A decay that is rounded to 0 is off by no factor.
    delta = torch.where(rounded == 0, 1, decay / torch.where(rounded == 0, 1, rounded)).log().detach()
    turn = _powers(delta, length)
    h, last = diagonal_recurrence(rounded, inputs * _powers(-delta, length), state=state, segments=segments)
    return h * turn, last * turn[-1]


def _choose(x: Tensor, places: Tensor) -> Tensor:
    """x (b t n) at places (b s) -> (b s n)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _powers(exponent: Tensor, length: int) -> Tensor:
    """exp(t exponent), complex64, for t = 1 .. length and the exponents (n) of rounding errors: (length n)."""
    inside = torch.arange(1, BLOCK + 1, device=exponent.device)[:, None]
    starts = torch.arange(length // BLOCK + 1, device=exponent.device)[:, None] * BLOCK
    # Over one block the exponent stays below 1e-5, and its square below rounding.
    few, many = (1 + exponent * inside).to(torch.complex64), torch.exp(exponent * starts).to(torch.complex64)
    table = (many[:, None] * few).flatten(0, 1)
    return table.index_select(0, torch.arange(length, device=table.device)) if is_recording() else table[:length]
