"""Sums over the processes of a distributed run, and what the first of them has drawn."""

from torch import Tensor, distributed


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place; x itself in a run of one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
    return x


def from_first_process(x: Tensor) -> Tensor:
    """The first process's x, in place, so that all go on alike."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(x, 0)
    return x
