"""Causal convolution of packed sequences: each is convolved alone, those of about one length together.

Sequences are grouped by their length rounded up to a power of two, so that time and memory stay linear in the tokens
however they are cut. The groups depend on the data: torch.compile keeps the whole as one operator.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .dispatch import library_name

_LIBRARY = library_name(__name__)


def segment_convolution(u: Tensor, kernel: Tensor, segments: Tensor) -> Tensor:
    """y_t = sum of k_(t-j) u_j over the tokens j <= t of t's own segment.

    u (b h t), kernel (h t), one real dtype; segments (b t) integers, equal for neighbours of one sequence -> (b h t).
    """
    return _convolve_operator(u, kernel, segments)


def groups(segments: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places (m s) in the flattened rows (b*t) of m sequences of at most s tokens, and which (m s) of them exist."""
    batch, length = segments.shape
    rows = torch.arange(batch, device=segments.device)[:, None].expand(-1, length)
    pairs = torch.stack([rows.reshape(-1), segments.reshape(-1)], dim=1)
    counts = torch.unique_consecutive(pairs, dim=0, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    sizes = 2 ** torch.ceil(torch.log2(counts.double())).long()
    for size in sizes.unique().tolist():
        chosen = sizes == size
        offset = torch.arange(min(size, length), device=segments.device)
        exists = offset < counts[chosen, None]
        yield torch.where(exists, starts[chosen, None] + offset, 0), exists


def _spectrum(flat: Tensor, places: Tensor, exists: Tensor) -> Tensor:
    """The padded transform (m f h) of the sequences of flat (b*t h)."""
    return torch.fft.rfft(flat[places] * exists[..., None], 2 * places.shape[1], dim=1)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[1])


def _convolve(u: Tensor, kernel: Tensor, segments: Tensor) -> Tensor:
    flat = _flat(u)
    out = torch.empty_like(flat)
    for places, exists in groups(segments):
        size = places.shape[1]
        response = torch.fft.rfft(kernel[:, :size], 2 * size).transpose(0, 1)
        y = torch.fft.irfft(_spectrum(flat, places, exists) * response, 2 * size, dim=1)[:, :size]
        out[places[exists]] = y[exists]
    return out.unflatten(0, segments.shape).transpose(1, 2).contiguous()


def _kernel_gradient(grad: Tensor, u: Tensor, segments: Tensor) -> Tensor:
    """sum_t grad_t u_(t-j) over all sequences, for each lag j: (h t)."""
    grad, u = _flat(grad), _flat(u)
    total = u.new_zeros(u.shape[1], segments.shape[1])
    for places, exists in groups(segments):
        size = places.shape[1]
        product = (_spectrum(grad, places, exists) * _spectrum(u, places, exists).conj()).sum(0)
        total[:, :size] += torch.fft.irfft(product, 2 * size, dim=0)[:size].transpose(0, 1)
    return total


_convolve_operator = torch.library.custom_op(
    f"{_LIBRARY}::segment_convolution",
    _convolve,
    mutates_args=(),
    schema="(Tensor u, Tensor kernel, Tensor segments) -> Tensor",
)
_kernel_gradient_operator = torch.library.custom_op(
    f"{_LIBRARY}::segment_convolution_kernel_gradient",
    _kernel_gradient,
    mutates_args=(),
    schema="(Tensor grad, Tensor u, Tensor segments) -> Tensor",
)


@_convolve_operator.register_fake
def _(u: Tensor, kernel: Tensor, segments: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@_kernel_gradient_operator.register_fake
def _(grad: Tensor, u: Tensor, segments: Tensor) -> Tensor:
    return u.new_empty(u.shape[1], u.shape[2])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    u, kernel, segments = ctx.saved_tensors
    # The gradient of u runs the kernel from the end of each sequence.
    back = _convolve_operator(grad.flip(-1), kernel, segments.flip(-1)).flip(-1)
    return back, _kernel_gradient_operator(grad, u, segments), None


_convolve_operator.register_autograd(_differentiate, setup_context=_keep)
