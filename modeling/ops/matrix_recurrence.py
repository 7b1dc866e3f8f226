r"""The matrix-state recurrence behind linear attention, Performer, RetNet, TransNormer, Mamba-2 and RWKV-6.

S_t = exp(decay_t) * S_(t-1) + k_t^T v_t        y_t = q_t S_t
"""

import torch
from torch import Tensor

from .dispatch import check_form, choose_form
from .matrix_chunkwise import chunkwise
from .matrix_fast import fast
from .matrix_kernels import by_other_kernel
from .matrix_plain import decay_floor, parallel, sequential, step

_PLAIN = {"step": step, "sequential": sequential, "parallel": parallel, "chunkwise": chunkwise}


def matrix_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run S_t = exp(decay_t) S_(t-1) + k_t^T v_t, y_t = q_t S_t over a sequence; y_t includes token t itself.

    Args:
        q, k: (b h t dk), v: (b h t dv); any floating dtype, any strides. Sums and states are float32, or float64 where
            q, k or v is.
        decay: natural logarithm of the factor, <= 0 (not checked; -inf clears the state): None for 1, (h) a constant
            per head, (b h t) one per token, (b h t dk) one per token and row of the state.
        state: (b h dk dv) before the first token, or None for zeros. Gradients flow into it and out of the final one.
        segments: (b t) integers that never decrease, or None: packed sequences. A token sees its own segment only; the
            initial state belongs to segment 0, so that a row which begins with a new sequence begins with segment 1.
            Between segments the decay is replaced, and gets no gradient.
        form: None lets dispatch choose; "sequential", "parallel", "chunkwise" or "fast" insist on one.

    Returns:
        y (b h t dv) in the dtype of v, and the state (b h dk dv) after the last token.

    Raises:
        ValueError: a shape that does not fit the others, or an unknown form.
    """
    _check_shapes(q, k, v, decay, state, segments)
    chosen = choose_form(q.device, q.shape[2]) if form is None else check_form(form)
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return _run(q, k, v, decay, state, segments, chosen, form is None)
    return _run(q, k, v, decay, state, segments, chosen, form is None)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
    form: str,
    free: bool,
) -> tuple[Tensor, Tensor]:
    """Bring the arguments to their working types, and run a form, or another package's kernel where ``free``."""
    wide = torch.float64 if torch.float64 in (q.dtype, k.dtype, v.dtype) else torch.float32
    state = None if state is None else state.to(wide)
    if segments is not None:
        decay = _with_resets(decay, segments, q, wide)
    if free and (found := by_other_kernel(q, k, v, decay, state)) is not None:
        return found
    if form == "fast":
        return fast(q, k, v, decay, state)
    decay = None if decay is None else decay.to(wide)
    y, final = _PLAIN[form](q.to(wide), k.to(wide), v.to(wide), decay, state)
    return y.to(v.dtype), final


def _with_resets(decay: Tensor | None, segments: Tensor, q: Tensor, wide: torch.dtype) -> Tensor:
    """Return the decay with the state cleared before each token that begins a segment: (b h t) or (b h t dk)."""
    positions = torch.arange(segments.shape[1], device=segments.device)
    previous = segments.index_select(1, (positions - 1).clamp(min=0)) * (positions > 0)
    begins = (segments != previous)[:, None]
    whole = torch.zeros(1, 1, 1, dtype=wide, device=q.device) if decay is None else decay
    if whole.dim() == 1:
        whole = whole[:, None]
    elif whole.dim() == 4:
        begins = begins[..., None]
    cleared = whole.masked_fill(begins, decay_floor(wide))
    return cleared.expand(q.shape if cleared.dim() == 4 else q.shape[:3])


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, segments: Tensor | None
) -> None:
    if q.dim() != 4 or k.shape != q.shape:
        raise ValueError(f"q and k must both be (b h t dk), not {tuple(q.shape)} and {tuple(k.shape)}")
    if v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must be (b h t dv) with (b h t) = {tuple(q.shape[:3])}, not {tuple(v.shape)}")
    if q.shape[2] == 0:
        raise ValueError(f"the sequence must hold at least one token, not shape {tuple(q.shape)}")
    b, h, t, dk = q.shape
    if decay is not None and decay.shape not in ((h,), (b, h, t), (b, h, t, dk)):
        raise ValueError(f"decay must be {(h,)}, {(b, h, t)} or {(b, h, t, dk)}, not {tuple(decay.shape)}")
    if state is not None and state.shape != (b, h, dk, v.shape[-1]):
        raise ValueError(f"state must be {(b, h, dk, v.shape[-1])}, not {tuple(state.shape)}")
    if segments is not None and (segments.shape != (b, t) or segments.is_floating_point()):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
