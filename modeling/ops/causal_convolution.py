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
    last = None if segments is None else segments[:, -1:].expand(b, 1)
    numbers = None if segments is None else segments.expand(b, t)
    places = None
    if mask is not None and (t > 1 or ahead):
        places = real_first(mask.expand(b, t))
        x = take(x, places.argsort(dim=1))
        # Padding, now behind the tokens, is a sequence of its own.
        numbers = take_numbers(numbers, mask.expand(b, t), places)
    window = torch.cat([state, x, x.new_zeros(b, ahead, d)], dim=1)
    near = None if numbers is None else neighbours(numbers, k, ahead)
    y = shifted_sums(window, weight, bias, near, form)
    y = y if places is None else take(y, places)
    count = None if mask is None else mask.expand(b, t).sum(1, keepdim=True)
    return y, last_inputs(window, numbers, last, count, k - 1 - ahead)


def real_first(mask: Tensor) -> Tensor:
    """Where each token of mask (b t) goes when the real ones move to the front of their row, in order: (b t) int64."""
    real = mask.long()
    before = real.cumsum(1)
    return torch.where(mask, before - 1, before[:, -1:] + (1 - real).cumsum(1) - 1)


def take(x: Tensor, places: Tensor) -> Tensor:
    """x (b t d) at places (b s) of its rows."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def take_numbers(numbers: Tensor | None, mask: Tensor, places: Tensor) -> Tensor:
    """The segments (b t), or zeros, in their new places, and -1 at padding."""
    known = torch.where(mask, 0 if numbers is None else numbers.long(), -1)
    return torch.empty_like(known).scatter(1, places, known)


def neighbours(numbers: Tensor, k: int, ahead: int) -> Tensor:
    """(b t k) booleans: whether the input of each weight is of the token's own segment; the state is of segment 0."""
    window = F.pad(numbers, (k - 1 - ahead, 0), value=0)
    window = F.pad(window, (0, ahead), value=-2)
    return window.unfold(1, k, 1) == numbers[..., None]


def last_inputs(
    window: Tensor, numbers: Tensor | None, last: Tensor | None, count: Tensor | None, size: int
) -> Tensor:
    """The `size` inputs that end at the last real token of each row, zeros where they are of another segment.

    window (b size+t+ahead d); numbers (b t) with real tokens first; last (b 1): the row's last segment; count (b 1).
    """
    b, t = window.shape[0], window.shape[1] - size if numbers is None else numbers.shape[1]
    place = torch.arange(size, device=window.device).expand(b, -1)
    if count is None and last is None:
        return window[:, t : t + size].clone()
    place = place + (t if count is None else count)
    state = take(window, place)
    if last is None:
        return state
    known = F.pad(numbers.long(), (size, 0), value=0) if numbers is not None else place.new_zeros(b, size + t)
    return torch.where((known.gather(1, place) == last)[..., None], state, 0)


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
    if bias is not None and bias.shape != (d,):
        raise ValueError(f"bias must be {(d,)}, not {tuple(bias.shape)}")
    if state is not None and state.shape != (b, k - 1 - ahead, d):
        raise ValueError(f"state must be {(b, k - 1 - ahead, d)}, not {tuple(state.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != t):
        raise ValueError(f"mask must be {(b, t)} booleans, not {mask.dtype} {tuple(mask.shape)}")
    if segments is not None and (segments.is_floating_point() or segments.dim() != 2 or segments.shape[1] != t):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
