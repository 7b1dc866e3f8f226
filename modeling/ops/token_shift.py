"""The token before each token, in its own sequence and across calls: RWKV's convolution of two taps."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_shift(
    x: Tensor, state: Tensor | None = None, mask: Tensor | None = None, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The real token before each token of x.

    Padded tokens count as absent wherever they stand; what is returned at them means nothing.

    Args:
        x: (b t d), t > 0.
        state: (b d), the last token of the calls before, or None for zeros. It belongs to segment 0.
        mask: (b t) booleans, False at padding, or None.
        segments: (b t) integers that never decrease, or None: each of the packed sequences starts from zero.

    Returns:
        The tokens before (b t d), zero at the beginning of a sequence, and the next call's state (b d), in float32
        or wider.
    """
    start = torch.zeros_like(x[:, 0]) if state is None else state.to(x.dtype)
    if mask is not None:
        return _shift_past_padding(x, start, mask.expand(x.shape[0], -1), segments)
    # Cut after joining: a length of t - 1 would have to be proved in an exported program.
    before = torch.cat([start[:, None], x], 1)[:, :-1]
    if segments is not None:
        before = before * (segments == F.pad(segments, (1, 0))[:, :-1]).to(x.dtype)[..., None]
    return before, _keep(x[:, -1])


def _keep(last: Tensor) -> Tensor:
    """A copy: a view would keep the whole of x alive in a cache."""
    return last.to(torch.promote_types(last.dtype, torch.float32), copy=True)


def _shift_past_padding(x: Tensor, start: Tensor, mask: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `token_shift`; places are numbered from 1, and 0 is that of the state."""
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    seen = F.pad(torch.where(mask, places, 0).cummax(1).values, (1, 0))  # (b 1+t): the last real token up to each
    known = torch.cat([start[:, None], x], 1)
    found = known.gather(1, seen[..., None].expand(-1, -1, x.shape[2]))
    if segments is not None:
        numbers = F.pad(segments.expand(x.shape[0], -1), (1, 0))
        # A token is asked for by the one after it; the last one by the next call, which continues its segment.
        asking = torch.cat([numbers[:, 1:], numbers[:, -1:]], 1)
        found = found * (numbers.gather(1, seen) == asking).to(x.dtype)[..., None]
    return found[:, :-1], _keep(found[:, -1])
