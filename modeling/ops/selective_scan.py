"""The selective scan of Mamba, fused so that the states of all tokens are never held at once.

    h_t = exp(delta_t A) * h_(t-1) + (delta_t u_t) B_t        y_t = C_t h_t

This is equation 2 of "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" with the input discretised as
delta B (Euler), which is what the published models do. The skip D u and the gate are the mixer's.
"""

import torch
from torch import Tensor

from .diagonal_recurrence import continues, diagonal_recurrence
from .dispatch import check_form, choose_form
from .selective_blocks import LOG2_E, fast


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence over a sequence.

    Sums and states are float32, or float64 where an input is. Padding is the caller's: delta = 0 at a token leaves
    the state as it is. The fast form can be differentiated once only.

    Args:
        u, delta: the inputs and the step sizes (b t d); any real floating dtype. A: (d n), negative to decay.
        B, C: (b t n), how the input enters the state and how the state is read.
        state: (b d n) before the first token, or None for zeros. Gradients flow into it and out of the final one.
        segments: (b t) integers that never decrease, or None: packed sequences, each of which starts from zero. The
            initial state belongs to segment 0: a row which begins with a new sequence begins with segment 1.
        form: None lets dispatch choose; else "sequential", "chunkwise" ("parallel"; holds every state) or "fast".

    Returns:
        y (b t d) in the dtype of u, and the state (b d n) after the last token.

    Raises:
        ValueError: a shape or dtype that does not fit the others, or an unknown form.
    """
    _check(u, delta, A, B, C, state, segments)
    form = choose_form(u.device, u.shape[1]) if form is None else check_form(form)
    wide = torch.float64 if torch.float64 in (x.dtype for x in (u, delta, A, B, C)) else torch.float32
    state = u.new_zeros(u.shape[0], *A.shape, dtype=wide) if state is None else state.to(wide)
    kept = None if segments is None else continues(segments)
    if form == "fast":
        return fast(u, delta, A.to(wide), B, C, state, kept)
    run = {"step": _step, "sequential": _sequential}.get(form, _chunkwise)
    y, final = run(u.to(wide), delta.to(wide), A.to(wide), B.to(wide), C.to(wide), state, kept)
    return y.to(u.dtype), final


def _step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token. exp2 because it is the one exponential that torch vectorises on every processor."""
    decay = torch.exp2(delta[:, 0, :, None] * (A * LOG2_E))
    if kept is not None:
        decay = decay * kept[:, 0, None, None]
    state = torch.addcmul((delta * u)[:, 0, :, None] * B, decay, state)
    return (state * C).sum(-1)[:, None], state


def _sequential(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs = []
    keeps = torch.ones_like(u[..., 0]) if kept is None else kept.to(u.dtype)
    for x, step, into, out, keep in zip(*(v.unbind(1) for v in (u, delta, B, C, keeps)), strict=True):
        decay = torch.exp(step[..., None] * A) * keep[:, None, None]
        state = decay * state + (step * x)[..., None] * into[:, None]
        outputs.append((state * out[:, None]).sum(-1))
    return torch.stack(outputs, 1), state


def _chunkwise(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The form that can be exported: every state is held, and no loop depends on the number of tokens."""
    decay = torch.exp2(delta[..., None] * (A * LOG2_E))
    if kept is not None:
        decay = decay * kept[..., None, None]
    h, final = diagonal_recurrence(decay, (delta * u)[..., None] * B[:, :, None], state=state, form="chunkwise")
    return (h * C[:, :, None]).sum(-1), final


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, segments: Tensor | None
) -> None:
    for name, x in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must be real floating point, not {x.dtype}")
    if u.dim() != 3 or u.shape[1] == 0 or delta.shape != u.shape:
        raise ValueError(f"u and delta must both be (b t d), t > 0, not {tuple(u.shape)} and {tuple(delta.shape)}")
    b, t, d = u.shape
    if A.dim() != 2 or A.shape[0] != d:
        raise ValueError(f"A must be (d n) with d = {d}, not {tuple(A.shape)}")
    n = A.shape[1]
    for name, x in (("B", B), ("C", C)):
        if x.shape != (b, t, n):
            raise ValueError(f"{name} must be {(b, t, n)}, not {tuple(x.shape)}")
    if state is not None and state.shape != (b, d, n):
        raise ValueError(f"state must be {(b, d, n)}, not {tuple(state.shape)}")
    if segments is not None and (segments.shape != (b, t) or segments.is_floating_point()):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
