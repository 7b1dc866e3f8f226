"""The short depthwise convolution that stands before a scan, with its state, for padded and packed rows.

    y_t = b + sum_j w_j x_(t - k + 1 + j),   j = 0 ... k - 1

`ahead` of the k inputs may lie in the future: 0 is causal, and about half of k - 1 is the centred convolution of
encoders. What precedes a sequence is what the state remembers, else zeros. A padded token counts as absent, wherever
it stands: its neighbours see each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import check_form, choose_form
from .shifted_sums import shifted_sums


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    ahead: int = 0,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own k weights. The fast form can be differentiated once only.

    Args:
        x: (b t d), any real floating dtype. weight: (d k). bias: (d) or None.
        state: (b k-1-ahead d), the last inputs of what precedes x, or None for zeros.
        mask: (b t) or (1 t) booleans, False at padding, or None. What stands at padding in y means nothing.
        segments: (b t) or (1 t) integers that never decrease, or None: packed sequences, none of which sees another.
            The state belongs to segment 0.
        form: None lets dispatch choose; else "fast", or any other name of a form for the plain sum.

    Returns:
        y (b t d) in the dtype of x, and the state after the last token: the last inputs of its segment.

    Raises:
        ValueError: a shape or dtype that does not fit the others, or an unknown form.
    """
    _check(x, weight, bias, state, mask, segments, ahead)
    (b, t, d), k = x.shape, weight.shape[1]
    form = choose_form(x.device, t) if form is None else check_form(form)
    state = x.new_zeros(b, k - 1 - ahead, d) if state is None else state.to(x.dtype)
    mask, segments = (None if part is None else part.expand(b, t) for part in (mask, segments))
    x, numbers, places = compact(x, mask, segments, ahead)
    window = torch.cat([state, x, x.new_zeros(b, ahead, d)], dim=1)
    near = None if numbers is None else neighbours(numbers, k, ahead)
    y = shifted_sums(window, weight, bias, near, form)
    y = y if places is None else take(y, places)
    return y, last_inputs(window[:, : k - 1 - ahead + t], k - 1 - ahead, mask, segments, numbers)


def compact(
    x: Tensor, mask: Tensor | None, segments: Tensor | None, ahead: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x and its segments with the real tokens at the front of each row, and where each token went, or None."""
    if mask is None or (x.shape[1] == 1 and not ahead):
        return x, segments, None
    places = real_first(mask)
    # Looking back alone, no real token comes upon padding.
    numbers = take_numbers(segments, mask, places) if ahead or segments is not None else None
    return take(x, places.argsort(dim=1)), numbers, places


def real_first(mask: Tensor) -> Tensor:
    """Where each token of mask (b t) goes when the real ones move to the front of their row, in order: (b t) int64."""
    real = mask.long()
    before = real.cumsum(1)
    return torch.where(mask, before - 1, before[:, -1:] + (1 - real).cumsum(1) - 1)


def take(x: Tensor, places: Tensor) -> Tensor:
    """x (b t d) at places (b s) of its rows."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def take_numbers(segments: Tensor | None, mask: Tensor, places: Tensor) -> Tensor:
    """The segments (b t), or zeros, in their new places, and -1 at padding, which is a sequence of its own."""
    known = torch.where(mask, 0 if segments is None else segments.long(), -1)
    return torch.empty_like(known).scatter(1, places, known)


def neighbours(numbers: Tensor, k: int, ahead: int) -> Tensor:
    """(b t k) booleans: whether the input of each weight is of the token's own segment; the state is of segment 0."""
    window = F.pad(numbers, (k - 1 - ahead, 0), value=0)
    window = F.pad(window, (0, ahead), value=-2)
    return window.unfold(1, k, 1) == numbers[..., None]


def last_inputs(
    window: Tensor, size: int, mask: Tensor | None, segments: Tensor | None, numbers: Tensor | None
) -> Tensor:
    """The `size` inputs that end at the last real token of each row, zeros where they are of another segment.

    window (b size+t d): the state and the inputs, real ones first; numbers (b t): the segments, likewise.
    """
    b, t = window.shape[0], window.shape[1] - size
    if mask is None and segments is None:
        return window[:, t:].clone()
    place = torch.arange(size, device=window.device).expand(b, -1)
    place = place + (t if mask is None else mask.sum(1, keepdim=True))
    state = take(window, place)
    if segments is None or numbers is None:
        return state
    known = F.pad(numbers.long(), (size, 0), value=0).gather(1, place)
    return torch.where((known == segments[:, -1:])[..., None], state, 0)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
    ahead: int,
) -> None:
    if x.dim() != 3 or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(f"x must be (b t d), t > 0, real floating point, not {x.dtype} {tuple(x.shape)}")
    b, t, d = x.shape
    if weight.dim() != 2 or weight.shape[0] != d or weight.shape[1] < 1:
        raise ValueError(f"weight must be (d k) with d = {d}, k > 0, not {tuple(weight.shape)}")
    k = weight.shape[1]
    if not 0 <= ahead < k:
        raise ValueError(f"ahead must be in 0..{k - 1}, not {ahead}")
    for name, tensor, shape in (("bias", bias, (d,)), ("state", state, (b, k - 1 - ahead, d))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")
    for name, tensor, wanted in (("mask", mask, "booleans"), ("segments", segments, "integers")):
        fits = tensor is None or (tensor.dtype == torch.bool if name == "mask" else not tensor.is_floating_point())
        if tensor is not None and not (fits and tensor.shape in ((b, t), (1, t))):
            raise ValueError(f"{name} must be {(b, t)} {wanted}, not {tensor.dtype} {tuple(tensor.shape)}")
