"""Data parallelism for networks that take turns: gradients are averaged when a network is about to step, not before.

DistributedDataParallel expects one forward and one backward of the wrapped network per step. Two networks that judge
each other, penalties with gradients of gradients and adaptive weights break that; an average of the finished gradients
is right for all of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

BUCKET = 2**23


class Replica(nn.Module):
    """One process's copy of a model. It calls the model and does nothing else: gradients stay where they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The parameters collect no gradients inside, and are as before outside."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def synchronise(module: nn.Module, accelerator: Accelerator) -> None:
    """Every process takes over the first one's parameters and buffers."""
    if accelerator.num_processes > 1:
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """The mean of all processes' gradients takes the place of each one's own."""
    average((parameter.grad for parameter in parameters if parameter.grad is not None), accelerator)


def average_statistics(module: nn.Module, accelerator: Accelerator) -> None:
    """The same for buffers, such as a batch norm's running mean and variance, which each process has of its rows."""
    average((buffer for buffer in module.buffers() if buffer.is_floating_point()), accelerator)


@torch.no_grad()
def average(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        for bucket in buckets(list(tensors)):
            flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in bucket]), reduction="mean")
            for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype with at most `BUCKET` elements, or of one tensor that has more."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
