"""What layers and losses need of the other processes, where the samples of a batch meet; and work on one thread."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_over_processes(values: Tensor) -> Tensor:
    """``values`` summed over all processes, or as they are where there is one. Without gradient."""
    if not several_processes():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """(R, ...) of this process -> (processes * R, ...) in order of rank, and the number of the first own row.

    R must be the same everywhere. The gradient of a row is the sum of what all processes make of it, so that a loss
    summed over processes has the gradient that one process with all rows would have.
    """
    if not several_processes():
        return x, 0
    return _Gather.apply(x), dist.get_rank() * x.shape[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return add_over_processes(gradient.contiguous()).narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
