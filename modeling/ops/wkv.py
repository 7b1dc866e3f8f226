"""The WKV operator of RWKV-4: a weighted mean of the values of the past, by exponentials that never overflow.

    y_t = (sum_(i<t) e^(k_i - (t-1-i) w) v_i + e^(u + k_t) v_t) / (sum_(i<t) e^(k_i - (t-1-i) w) + e^(u + k_t))

with w = e^decay (Peng et al. 2023, arXiv:2305.13048, eq. 16). Sums are kept as (num, den, top): the true sums are
e^top num and e^top den, where top is the largest exponent so far, max_i(k_i - (t-i) w). It is a choice of scale and
not a function of the inputs: no gradient flows through it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .diagonal_recurrence import continues, diagonal_recurrence
from .dispatch import check_form, choose_form
from .wkv_blocks import fast

# The exponent of an empty sum: below every other, and finite, so that differences are numbers.
EMPTY = -1e30
Sums = tuple[Tensor, Tensor, Tensor]


def wkv(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    *,
    state: Sums | None = None,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Sums]:
    """The weighted mean of values, over a sequence.

    Sums and states are float32, or float64 where an input is. The fast form can be differentiated once only.

    Args:
        k, v: keys and values (b t d), any real floating dtype.
        decay, bonus: (d). A sum shrinks by e^(-e^decay) at each token; the newest token's own weight grows by e^bonus.
        state: (num, den, top), each (b d), before the first token, or None for nothing. Gradients flow into it, and
            out of the final num and den.
        mask: (b t) booleans or None: a token with False adds nothing and lets nothing fade; its y means nothing.
        segments: (b t) integers that never decrease, or None: packed sequences. The state belongs to segment 0.
        form: None lets dispatch choose; else "sequential", "chunkwise" ("parallel"; plain torch) or "fast".

    Returns:
        y (b t d) in the dtype of v, and the state after the last token.

    Raises:
        ValueError: a shape or dtype that does not fit the others, or an unknown form.
    """
    _check(k, v, decay, bonus, state, mask, segments)
    form = choose_form(k.device, k.shape[1]) if form is None else check_form(form)
    wide = torch.float64 if torch.float64 in (x.dtype for x in (k, v, decay, bonus)) else torch.float32
    sums = empty_state(k.shape[0], k.shape[2], wide, k.device) if state is None else _widen(state, wide)
    kept = None if segments is None else continues(segments.expand(k.shape[0], -1))
    rest = (-decay.to(wide).exp(), bonus.to(wide), sums, None if mask is None else mask.expand(k.shape[0], -1), kept)
    if form == "fast":
        return fast(k, v, *rest)
    y, sums = (_sequential if form in ("step", "sequential") else _chunkwise)(k.to(wide), v.to(wide), *rest)
    return y.to(v.dtype), sums


def empty_state(batch: int, width: int, dtype: torch.dtype, device: torch.device) -> Sums:
    """The sums (num, den, top) of nothing, each (batch width)."""
    num = torch.zeros(batch, width, dtype=dtype, device=device)
    return num, torch.zeros_like(num), torch.full_like(num, EMPTY)


def _widen(state: Sums, wide: torch.dtype) -> Sums:
    """The state in the dtype of the sums, its scale constant: a gradient to `top` is one to the true sums."""
    num, den, top = (part.to(wide) for part in state)
    scale = torch.exp(top - top.detach()) if top.requires_grad else 1
    return num * scale, den * scale, top.detach()


def _sequential(
    k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, state: Sums, mask: Tensor | None, kept: Tensor | None
) -> tuple[Tensor, Sums]:
    num, den, top = state
    outputs = []
    for t in range(k.shape[1]):
        if kept is not None:
            goes_on = kept[:, t, None]
            num, den, top = num * goes_on, den * goes_on, torch.where(goes_on, top, EMPTY)
        key, value = k[:, t], v[:, t]
        high = torch.maximum(top, bonus + key).detach()
        past, own = torch.exp(top - high), torch.exp(bonus + key - high)
        outputs.append((past * num + own * value) / (past * den + own))
        high = torch.maximum(top + rate, key).detach()
        past, own = torch.exp(top + rate - high), torch.exp(key - high)
        after = past * num + own * value, past * den + own, high
        if mask is not None:
            real = mask[:, t, None]
            after = tuple(torch.where(real, new, old) for new, old in zip(after, (num, den, top), strict=True))
        num, den, top = after
    return torch.stack(outputs, 1), (num, den, top)


def _chunkwise(
    k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, state: Sums, mask: Tensor | None, kept: Tensor | None
) -> tuple[Tensor, Sums]:
    """All tokens at once, without a loop that depends on their number."""
    num, den, top = state
    with torch.no_grad():
        tops = _running_tops(k, rate, top, mask, kept)  # (b 1+t d)
    before, after = tops[:, :-1], tops[:, 1:]
    fade = before + (rate if mask is None else rate * mask[..., None]) - after
    own = _exp(k - after, mask, k.dtype)
    start = torch.stack([num, den], 1) * torch.exp(top - tops[:, 0]).to(k.dtype)[:, None]
    sums, _ = diagonal_recurrence(
        _exp(fade, kept, k.dtype)[:, :, None], torch.stack([own * v, own], 2), state=start, form="chunkwise"
    )  # (b t 2 d)
    past = torch.cat([start[:, None], sums], 1)[:, :-1]
    reach = before if kept is None else torch.where(kept[..., None], before, EMPTY)
    high = torch.maximum(reach, bonus + k).detach()
    past = past * _exp(before - high, kept, k.dtype)[:, :, None]
    new = torch.exp((bonus + k - high).to(k.dtype))
    y = (past[:, :, 0] + new * v) / (past[:, :, 1] + new)
    final = sums[:, -1]
    last = torch.where(final[:, 1] > 0, after[:, -1].to(k.dtype), EMPTY)
    return y, (final[:, 0].clone(), final[:, 1].clone(), last)


def _exp(x: Tensor, where: Tensor | None, dtype: torch.dtype) -> Tensor:
    """e^x (b t d) where a token is marked, else 0, and never an infinity on the way."""
    return torch.exp((x if where is None else x.masked_fill(~where[..., None], -torch.inf)).to(dtype))


def _running_tops(k: Tensor, rate: Tensor, top: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
    """The largest exponent (b 1+t d) before the first token and after each, by one cumulative maximum.

    In float64 where there is one: what counts is the small differences of large exponents. They are moved to where
    nothing fades, and those of later sequences above all of the earlier ones.
    """
    place = torch.arange(1, k.shape[1] + 1, device=k.device)[None] if mask is None else mask.long().cumsum(1)
    exact = torch.float32 if k.device.type == "mps" else torch.float64
    faded = F.pad(place, (1, 0))[..., None].to(exact) * rate.to(exact)  # (b 1+t d)
    levels = k.to(exact) - faded[:, 1:]
    low = levels.amin(1, keepdim=True)
    start = torch.where(top > EMPTY / 2, top.to(exact), low[:, 0])[:, None]
    hidden = levels if mask is None else torch.where(mask[..., None], levels, torch.minimum(low, start))
    levels = torch.cat([start, hidden], 1)
    if kept is not None:
        step = levels.amax(1, keepdim=True) - levels.amin(1, keepdim=True) + 1
        sequence = F.pad((~kept).long().cumsum(1), (1, 0))[..., None].to(exact)
        return torch.cummax(levels + step * sequence, 1).values - step * sequence + faded
    return torch.cummax(levels, 1).values + faded


def _check(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    state: Sums | None,
    mask: Tensor | None,
    segments: Tensor | None,
) -> None:
    for name, x in (("k", k), ("v", v), ("decay", decay), ("bonus", bonus)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must be real floating point, not {x.dtype}")
    if k.dim() != 3 or k.shape[1] == 0 or v.shape != k.shape:
        raise ValueError(f"k and v must both be (b t d), t > 0, not {tuple(k.shape)} and {tuple(v.shape)}")
    b, t, d = k.shape
    for name, x in (("decay", decay), ("bonus", bonus)):
        if x.shape != (d,):
            raise ValueError(f"{name} must be {(d,)}, not {tuple(x.shape)}")
    if state is not None and [tuple(part.shape) for part in state] != [(b, d)] * 3:
        raise ValueError(f"state must be three tensors {(b, d)}, not {[tuple(part.shape) for part in state]}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape[-1] != t or mask.dim() != 2):
        raise ValueError(f"mask must be {(b, t)} booleans, not {mask.dtype} {tuple(mask.shape)}")
    if segments is not None and (segments.dim() != 2 or segments.shape[-1] != t or segments.is_floating_point()):
        raise ValueError(f"segments must be {(b, t)} integers, not {segments.dtype} {tuple(segments.shape)}")
