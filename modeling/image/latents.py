"""What a generator starts from: latents, drawn so that a seed gives the same ones on every device, and labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

Seed = int | Sequence[int] | torch.Generator | None


def draw(size: tuple[int, ...], distribution: str, generator: torch.Generator | None) -> Tensor:
    if distribution == "normal":
        return torch.randn(size, generator=generator)
    return torch.rand(size, generator=generator) * 2 - 1


def draw_latents(batch_size: int, width: int, distribution: str, seed: Seed = None) -> Tensor:
    """(batch_size width), float32, on the processor: "normal", or "uniform" in [-1, 1].

    seed: one for the batch; one for each row, which then depends on nothing else; or a generator, by default torch's.
    Raises ValueError for a batch below 1 and for another number of seeds.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, not {batch_size}.")
    if isinstance(seed, int):
        seed = torch.Generator().manual_seed(seed)
    if seed is None or isinstance(seed, torch.Generator):
        return draw((batch_size, width), distribution, seed)
    if len(seed) != batch_size:
        raise ValueError(f"{len(seed)} seeds do not fit {batch_size} samples: give one seed, or one for each of them.")
    return torch.cat([draw((1, width), distribution, torch.Generator().manual_seed(row)) for row in seed])


def check_labels(labels: Tensor | Sequence[int] | int | None, count: int, batch_size: int) -> Tensor | None:
    """Labels (batch_size), int64, of a model with `count` classes: one label stands for the whole batch.

    Raises ValueError where they are missing, or the model has no classes, and for another number and wrong values.
    """
    if labels is None:
        if count:
            raise ValueError(f"the model makes samples of {count} classes: give `labels`, each in 0..{count - 1}.")
        return None
    if not count:
        raise ValueError("the model has no classes (`num_labels` is 0): leave `labels` out.")
    labels = torch.as_tensor(labels)
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be integers, not {labels.dtype}.")
    labels = labels.long().expand(batch_size) if labels.ndim == 0 else labels.long()
    if labels.shape != (batch_size,):
        raise ValueError(f"`labels` of shape {tuple(labels.shape)} do not fit {batch_size} samples.")
    if not torch.compiler.is_compiling() and (wrong := labels[(labels < 0) | (labels >= count)]).numel():
        raise ValueError(f"`labels` must lie in 0..{count - 1}, not be {wrong[0].item()}.")
    return labels
