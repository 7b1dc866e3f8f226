"""The nearest vector of a codebook, for many vectors, in memory that does not grow with their number.

    argmin_k |z - e_k|^2 = argmin_k (|e_k|^2 / 2 - z . e_k)

The right side is one matrix product, and is left without |z|^2, in which small differences would be rounded away.
"""

import torch
from torch import Tensor

from .dispatch import check_form, choose_form, is_tracing_graph, library_name

BLOCK_VECTORS = 256
BLOCK_NUMBERS = 2**22
ACCELERATOR_NUMBERS = 2**25
GROUP = 128


def nearest_codes(vectors: Tensor, codebook: Tensor, block: int | None = None, form: str | None = None) -> Tensor:
    """vectors (n d), codebook (v d) -> (n), int64: for each vector the nearest of the codebook, the first of several.

    Computed in float32, or float64 where an input is. There is no gradient.

    Args:
        block: so many vectors are compared at once; None is 256 and 16 MiB at most on a processor, 128 MiB on an
            accelerator.
        form: None lets dispatch choose; "fast" and "chunkwise" go block by block, "parallel" and "sequential" compare
            all at once, as exported graphs do.

    Raises:
        ValueError: tensors that are not two matrices of the same width, an empty codebook, a block below 1.
    """
    _check(vectors, codebook, block)
    form = choose_form(vectors.device, 0) if form is None else check_form(form)
    wide = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    vectors, codebook = vectors.detach().to(wide), codebook.detach().to(wide)
    if form in ("parallel", "sequential") or is_tracing_graph():
        return _compare(vectors, codebook)
    if torch.compiler.is_compiling():
        return _operator(vectors, codebook, block)
    return _blockwise(vectors, codebook, block)


def _check(vectors: Tensor, codebook: Tensor, block: int | None) -> None:
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1]:
        shapes = f"{tuple(vectors.shape)} and {tuple(codebook.shape)}"
        raise ValueError(f"vectors (n d) and codebook (v d) must be matrices of one width, not {shapes}.")
    if not len(codebook):
        raise ValueError("the codebook is empty: it must hold one vector at least.")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, not {block}.")


def _half_squares(codebook: Tensor) -> Tensor:
    return codebook.square().sum(1) / 2


def _compare(vectors: Tensor, codebook: Tensor) -> Tensor:
    return torch.addmm(_half_squares(codebook), vectors, codebook.t(), alpha=-1).argmin(1)


def _block_size(device: torch.device, count: int) -> int:
    if device.type == "cpu":
        return max(1, min(BLOCK_VECTORS, BLOCK_NUMBERS // count))
    return max(1, ACCELERATOR_NUMBERS // count)


@torch.no_grad()
def _blockwise(vectors: Tensor, codebook: Tensor, block: int | None) -> Tensor:
    count = len(codebook)
    block = _block_size(vectors.device, count) if block is None else block
    half, columns = _half_squares(codebook), codebook.t()
    codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    distances = vectors.new_empty(min(block, len(vectors)), count)
    for rows, found in zip(vectors.split(block), codes.split(block), strict=True):
        found.copy_(_least(torch.addmm(half, rows, columns, alpha=-1, out=distances[: len(rows)])))
    return codes


def _least(distances: Tensor) -> Tensor:
    """argmin over the last dimension: minima of groups first, since a minimum alone is found ten times as fast."""
    rows, count = distances.shape
    if count % GROUP or distances.device.type != "cpu":
        return distances.argmin(1)
    groups = distances.view(rows, -1, GROUP)
    best = groups.amin(2).argmin(1)
    return groups[torch.arange(rows), best].argmin(1) + best * GROUP


def _empty_codes(vectors: Tensor, codebook: Tensor, block: int | None) -> Tensor:
    return vectors.new_empty(len(vectors), dtype=torch.int64)


_operator = torch.library.custom_op(
    f"{library_name(__name__)}::nearest_codes",
    _blockwise,
    mutates_args=(),
    schema="(Tensor vectors, Tensor codebook, int? block) -> Tensor",
)
_operator.register_fake(_empty_codes)
