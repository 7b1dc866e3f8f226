r"""The recurrence of Mamba-2 (state space duality), whose heads share how a state is written and read.

    S_t = exp(g_t) S_(t-1) + B_t^T (delta_t x_t)        y_t = C_t S_t

"Transformers are SSMs" (arXiv:2405.21060), equations 6 and 16, with g_t = delta_t A. It is the matrix-state
recurrence with B for keys, C for queries and delta x for values; B and C belong to a group of heads, so that the fast
form computes their products once for the group.
"""

import torch
from torch import Tensor

from .dispatch import check_form, choose_form
from .matrix_recurrence import matrix_recurrence
from .ssd_fast import fast


def ssd(
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a sequence. The fast form can be differentiated once only.

    Sums and states are float32, or float64 where an input is. Padding is the caller's: delta = 0 and decay = 0 at a
    token leave the state as it is.

    Args:
        x: (b t h p), the inputs; any real floating dtype, any strides. delta: (b t h), their step sizes.
        decay: (b t h), natural logarithm of what the state is multiplied with, <= 0; -inf clears it.
        B, C: (b t g n), how the input enters the state and how the state is read by the h/g heads of each group.
        state: (b h n p) before the first token, or None for zeros. Gradients flow into it and out of the final one.
        segments: (b t) integers that never decrease, or None: packed sequences, each of which starts from zero. The
            initial state belongs to segment 0: a row which begins with a new sequence begins with segment 1.
        form: None lets dispatch choose; else one of the matrix recurrence's forms.

    Returns:
        y (b t h p) in the dtype of x, and the state (b h n p) after the last token.

    Raises:
        ValueError: a shape or dtype that does not fit the others, or an unknown form.
    """
    _check(x, delta, decay, B, C, state, segments)
    wide = torch.float64 if torch.float64 in (v.dtype for v in (x, delta, decay, B, C)) else torch.float32
    state = None if state is None else state.to(wide)
    if (choose_form(x.device, x.shape[1]) if form is None else check_form(form)) == "fast":
        decay = decay if segments is None else decay.masked_fill(_begins(segments)[..., None], -torch.inf)
        with torch.autocast(x.device.type, enabled=False):
            return fast(x, delta, decay, B, C, state)
    y, final = _by_heads(*(v.to(wide) for v in (x, delta, decay, B, C)), state=state, segments=segments, form=form)
    return y.to(x.dtype), final


def _by_heads(
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    segments: Tensor | None,
    form: str | None,
) -> tuple[Tensor, Tensor]:
    """The matrix recurrence of every head with its group's B and C."""
    repeats = x.shape[2] // B.shape[2]
    q, k = (part.repeat_interleave(repeats, dim=2).transpose(1, 2) for part in (C, B))
    v = (x * delta[..., None]).transpose(1, 2)
    y, final = matrix_recurrence(q, k, v, decay.transpose(1, 2), state=state, segments=segments, form=form)
    return y.transpose(1, 2), final


def _begins(segments: Tensor) -> Tensor:
    """(b t) booleans: True at the first token of every segment but 0."""
    previous = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, :-1]], dim=1)
    return segments != previous


def _check(
    x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, segments: Tensor | None
) -> None:
    for name, part in (("x", x), ("delta", delta), ("decay", decay), ("B", B), ("C", C)):
        if not part.is_floating_point():
            raise ValueError(f"{name} must be real floating point, not {part.dtype}")
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x must be (b t h p), t > 0, not {tuple(x.shape)}")
    b, t, h, p = x.shape
    for name, part in (("delta", delta), ("decay", decay)):
        if part.shape != (b, t, h):
            raise ValueError(f"{name} must be {(b, t, h)}, not {tuple(part.shape)}")
    if B.dim() != 4 or B.shape[:2] != (b, t) or C.shape != B.shape:
        raise ValueError(f"B and C must both be {(b, t)} + (g n), not {tuple(B.shape)} and {tuple(C.shape)}")
    groups, n = B.shape[2:]
    if groups == 0 or h % groups:
        raise ValueError(f"{h} heads cannot be shared out among {groups} groups")
    if state is not None and state.shape != (b, h, n, p):
        raise ValueError(f"state must be {(b, h, n, p)}, not {tuple(state.shape)}")
    if segments is not None and (segments.shape != (b, t) or segments.is_floating_point()):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
