r"""The diagonal recurrence: one function behind S4D, LRU and, once stabilised, WKV; real or complex.

    h_t = a_t * h_(t-1) + b_t        (elementwise)

The forms are mathematically one; they differ in speed, memory and in what can trace them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .diagonal_parallel import associative, chunkwise
from .diagonal_scan import fast
from .dispatch import check_form, choose_form


def diagonal_recurrence(
    a: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t h_(t-1) + b_t over a sequence.

    Sums and states are float32 for half-precision inputs, else in the wider of the dtypes of a and b, complex where
    one of them is. Complex gradients are torch's (the conjugate). The fast form can be differentiated once only.

    Args:
        a: the decays, real or complex, |a| <= 1 expected but not required. (batch t *channels), where any size may
            also be 1, or (*channels) for decays that are constant in time.
        b: the inputs (batch t *channels), real or complex, with any number of channel dimensions.
        state: (batch *channels) before the first token, or None for zeros. Gradients flow into it and out of the
            final one.
        segments: (batch t) integers that never decrease, or None: packed sequences, each of which starts from zero.
            The initial state belongs to segment 0: a row which begins with a new sequence begins with segment 1.
        form: None lets dispatch choose; "sequential", "associative" (also called "parallel"), "chunkwise" or "fast"
            insist on one.

    Returns:
        h (batch t *channels), and the state (batch *channels) after the last token. h has the dtype of b where b is
        real and of half precision, and no decay is complex; else that of the state.

    Raises:
        ValueError: a shape or dtype that does not fit the others, or an unknown form.
    """
    _check(a, b, state, segments)
    narrow, wide = _dtypes(a, b)
    a, b = (a if a.dim() == b.dim() else a[None, None]).to(wide), b.to(wide)
    state = b.new_zeros(b.shape[0], *b.shape[2:]) if state is None else state.to(wide)
    if segments is not None:
        kept = continues(segments)
        a = a * kept.reshape(kept.shape + (1,) * (b.dim() - 2)).to(a.dtype)
    h, final = _run(_form(form, b), a, b, state)
    return h.to(narrow), final


def continues(segments: Tensor) -> Tensor:
    """Return (batch t) booleans: whether the state before a token reaches it, i.e. whether no segment starts there."""
    return segments == F.pad(segments, (1, 0))[:, :-1]


def _form(form: str | None, b: Tensor) -> str:
    if form is None:
        return choose_form(b.device, b.shape[1])
    return form if form == "associative" else check_form(form)


def _run(form: str, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    if form == "fast":
        return fast(a, b, state)
    if form == "step":
        final = torch.addcmul(b[:, 0], a[:, 0], state)
        return final[:, None], final
    h = {"sequential": _sequential, "chunkwise": chunkwise}.get(form, associative)(a, b, state)
    return h, h[:, -1].clone()  # a view would keep the whole of h alive in a cache


def _sequential(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    states = []
    for decay, value in zip(a.expand(-1, b.shape[1], *a.shape[2:]).unbind(1), b.unbind(1), strict=True):
        state = decay * state + value
        states.append(state)
    return torch.stack(states, 1)


def _dtypes(a: Tensor, b: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtype in which h is returned, and the one in which it is summed."""
    both = torch.promote_types(a.dtype, b.dtype)
    if both == torch.complex32:
        return torch.complex64, torch.complex64
    wide = torch.float32 if both in (torch.float16, torch.bfloat16) else both
    half = b.dtype in (torch.float16, torch.bfloat16) and not wide.is_complex
    return b.dtype if half else wide, wide


def _check(a: Tensor, b: Tensor, state: Tensor | None, segments: Tensor | None) -> None:
    if b.dim() < 2 or b.shape[1] == 0:
        raise ValueError(f"b must be (batch t *channels) with at least one token, not {tuple(b.shape)}")
    for name, x in (("a", a), ("b", b)):
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(f"{name} must be real or complex floating point, not {x.dtype}")
    batch, t, channels = b.shape[0], b.shape[1], tuple(b.shape[2:])
    whole = tuple(b.shape) if a.dim() == b.dim() else channels
    if a.dim() != len(whole) or any(x not in (1, y) for x, y in zip(a.shape, whole, strict=True)):
        raise ValueError(
            f"a must be (batch t *channels) = {tuple(b.shape)} or (*channels) = {channels}, any size 1 instead, "
            f"not {tuple(a.shape)}"
        )
    if state is not None and tuple(state.shape) != (batch, *channels):
        raise ValueError(f"state must be {(batch, *channels)}, not {tuple(state.shape)}")
    if state is not None and state.is_complex() and not (a.is_complex() or b.is_complex()):
        raise ValueError(f"state must be real where a and b are, not {state.dtype}")
    if segments is not None and (tuple(segments.shape) != (batch, t) or segments.is_floating_point()):
        raise ValueError(f"segments must be {(batch, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
