r"""The delta rule behind RWKV-7 and DeltaNet: a matrix state whose transition is diagonal plus of rank one.

S_t = exp(decay_t) * S_(t-1) + b_t^T (a_t S_(t-1)) + k_t^T v_t        y_t = q_t S_t
"""

import torch
from torch import Tensor

from .delta_chunkwise import chunkwise
from .delta_fast import fast
from .delta_plain import sequential, step
from .diagonal_recurrence import continues
from .dispatch import check_form, choose_form


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a sequence. What a_t reads is not yet decayed; y_t includes token t itself.

    Padding is the caller's: k, b and decay of zero leave the state as it is.

    Args:
        q, k, a, b: (b h t dk), v: (b h t dv); any floating dtype, any strides. Sums and states are float32, or float64
            where one of them is.
        decay: natural logarithm of the factor, <= 0 (not checked): None for 1, (b h t) one per token, or (b h t dk)
            one per token and row of the state. Below -1.9 it shortens the blocks of the fast form.
        state: (b h dk dv) before the first token, or None for zeros. Gradients flow into it and out of the final one.
        segments: (b t) integers that never decrease, or None: packed sequences. A token sees its own segment only; the
            initial state belongs to segment 0: a row which begins with a new sequence begins with segment 1.
        form: None lets dispatch choose; else "sequential", "chunkwise" ("parallel" is the same) or "fast".

    Returns:
        y (b h t dv) in the dtype of v, and the state (b h dk dv) after the last token.

    Raises:
        ValueError: a shape that does not fit the others, or an unknown form.
    """
    _check_shapes((q, k, a, b), v, decay, state, segments)
    form = choose_form(q.device, q.shape[2]) if form is None else check_form(form)
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return _run(q, k, v, a, b, decay, state, segments, form)
    return _run(q, k, v, a, b, decay, state, segments, form)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
    form: str,
) -> tuple[Tensor, Tensor]:
    """Bring the arguments to their working types, and run a form."""
    wide = torch.float64 if torch.float64 in (x.dtype for x in (q, k, v, a, b)) else torch.float32
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=wide)
    state = state.to(wide)
    decay = q.new_zeros(1, 1, 1, 1, dtype=wide) if decay is None else decay.to(wide)
    decay = (decay[..., None] if decay.dim() == 3 else decay).expand(q.shape)
    if segments is not None:
        begins = ~continues(segments)[:, None, :, None]
        # The first token of a segment reads no state; its decay is free, and 0 makes the longest blocks.
        a, decay = a.masked_fill(begins, 0), decay.masked_fill(begins, 0 if form == "fast" else -torch.inf)
    if form == "fast":
        return fast(q, k, v, a, b, decay, state, segments)
    run = {"step": step, "sequential": sequential}.get(form, chunkwise)
    y, final = run(q.to(wide), k.to(wide), v.to(wide), a.to(wide), b.to(wide), decay, state)
    return y.to(v.dtype), final


def _check_shapes(
    keys: tuple[Tensor, ...], v: Tensor, decay: Tensor | None, state: Tensor | None, segments: Tensor | None
) -> None:
    q = keys[0]
    if q.dim() != 4 or any(x.shape != q.shape for x in keys):
        shapes = ", ".join(str(tuple(x.shape)) for x in keys)
        raise ValueError(f"q, k, a and b must all be (b h t dk), not {shapes}")
    if v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must be (b h t dv) with (b h t) = {tuple(q.shape[:3])}, not {tuple(v.shape)}")
    if q.shape[2] == 0:
        raise ValueError(f"the sequence must hold at least one token, not shape {tuple(q.shape)}")
    b, h, t, dk = q.shape
    if decay is not None and decay.shape not in ((b, h, t), (b, h, t, dk)):
        raise ValueError(f"decay must be {(b, h, t)} or {(b, h, t, dk)}, not {tuple(decay.shape)}")
    if state is not None and state.shape != (b, h, dk, v.shape[-1]):
        raise ValueError(f"state must be {(b, h, dk, v.shape[-1])}, not {tuple(state.shape)}")
    if segments is not None and (segments.shape != (b, t) or segments.is_floating_point()):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
