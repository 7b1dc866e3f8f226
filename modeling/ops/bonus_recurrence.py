r"""The matrix-state recurrence of RWKV-5 and RWKV-6: a token sees the state before it, and itself by another weight.

y_t = q_t (S_(t-1) + diag(bonus) k_t^T v_t)        S_t = exp(decay_t) S_(t-1) + k_t^T v_t

After arXiv:2404.05892. What token t reads of S_(t-1) is what token t-1 would read of it with the
query of token t, so that the recurrence itself is ``matrix_recurrence`` with its queries one token early.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .diagonal_recurrence import continues
from .matrix_recurrence import matrix_recurrence


def bonus_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    *,
    state: Tensor | None = None,
    segments: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a sequence. Padding is the caller's: k and decay of zero leave the state as it is.

    Args:
        q, k: (b h t dk), v: (b h t dv); any floating dtype, any strides.
        decay: natural logarithm of the factor, <= 0 (not checked): (h dk) constants, or (b h t dk) one per token.
        bonus: (h dk), the weight of the token itself.
        state, segments, form: as `matrix_recurrence` takes them; sums and states have its dtypes too.

    Returns:
        y (b h t dv) in the dtype of v, and the state (b h dk dv) after the last token.

    Raises:
        ValueError: a shape that does not fit the others, or an unknown form.
    """
    heads = (q.shape[1], q.shape[-1]) if q.dim() == 4 else None
    if heads is not None and bonus.shape != heads:
        raise ValueError(f"bonus must be (h dk) = {heads}, not {tuple(bonus.shape)}")
    if decay.dim() == 2 and heads is not None:
        if decay.shape != heads:
            raise ValueError(f"decay must be (h dk) = {heads} or (b h t dk), not {tuple(decay.shape)}")
        decay = decay[:, None].expand(q.shape)
    early = F.pad(q, (0, 0, 0, 1))[:, :, 1:]  # cut last: a length of t - 1 would have to be proved in an export
    read, final = matrix_recurrence(early, k, v, decay, state=state, segments=segments, form=form)
    first = torch.zeros_like(read[:, :, :1]) if state is None else (q[:, :, :1].to(state.dtype) @ state).to(v.dtype)
    past = torch.cat([first, read], 2)[:, :, :-1]
    if segments is not None:
        past = past * continues(segments)[:, None, :, None]
    own = (q * k * bonus[:, None].to(q.dtype)).sum(-1, keepdim=True)
    return torch.addcmul(past, own.to(v.dtype), v), final
