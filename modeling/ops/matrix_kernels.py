"""The matrix-state recurrence by flash-linear-attention's Triton kernels, where that package is installed."""

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor

from .dispatch import optional_kernel
from .matrix_plain import decay_floor


def by_other_kernel(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the recurrence as ``fla.ops`` computes it, or None where it does not apply.

    It applies to more than one token in half precision on CUDA: in float32 its products are too coarse (TF32) for the
    accuracy that all forms promise. Tensors are handed over as (b t h d).
    """
    half = q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype
    if not half or q.shape[2] == 1 or q.shape[3] > 256:
        return None
    per_channel = decay is not None and decay.dim() == 4
    module, name = ("fla.ops.gla", "chunk_gla") if per_channel else ("fla.ops.simple_gla", "chunk_simple_gla")
    kernel = optional_kernel(module, name, q.device)
    if kernel is None or not _takes_tokens_first(kernel):
        return None
    gate = torch.zeros_like(q[..., 0], dtype=torch.float32) if decay is None else decay.float()
    if gate.dim() == 1:
        gate = gate[:, None].expand(q.shape[:3])
    gate = gate.clamp(min=decay_floor(torch.float32)).transpose(1, 2).contiguous()
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    y, final = kernel(q, k, v, g=gate, scale=1.0, initial_state=state, output_final_state=True)
    return y.transpose(1, 2), final.float()


def _takes_tokens_first(kernel: Callable) -> bool:
    """Return whether the kernel reads (b t h d); versions of the package that default to (b h t d) are left alone."""
    layout = signature(kernel).parameters.get("head_first")
    return layout is None or not layout.default
