"""Batch normalisation whose statistics are those of the whole global batch, on any device and with padding."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from maemm.model.collectives import add_over_processes, several_processes

_AT_ONCE = 1024  # rows that a CPU takes at a time: what it then writes stays in its cache


class BatchNorm(nn.Module):
    """Normalise the channels of (..., C) over all other axes and over processes (Ioffe and Szegedy 2015).

    In training mode n processes with a part of the batch each give the values and gradients that one process with
    the whole batch gives; torch's ``SyncBatchNorm`` does so on GPUs only. Parameters and buffers have torch's names,
    and the running variance is the unbiased one, as there. Statistics are float32 (float64 for such signals), also
    under autocast.

    Samples see each other here (``coupled``): a model that holds such a layer refuses to split its batch into
    micro-batches unless the part around it allows it with ``per_micro_batch``.
    """

    coupled = True

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        if affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("weight", torch.ones(channels), persistent=False)
            self.register_buffer("bias", torch.zeros(channels), persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, valid: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(T, ..., C) -> (T, ..., C), or with ``keep`` (m,) int64 only those of the first axis: (m, ..., C).

        ``valid``: bool, the first axes of ``x``: what the statistics count. ``keep`` leaves them those of all.
        """
        if not self.training:
            x = x if keep is None else x.index_select(0, keep)
            return self._normalized(x, self.running_mean, self.running_var, self.weight, self.bias)
        self.num_batches_tracked += 1
        if valid is None and keep is None and not several_processes() and x.shape[:-1].numel() > 1:
            moving = self.running_mean, self.running_var
            out = batch_norm(x.flatten(0, -2), *moving, self.weight, self.bias, True, self.momentum, self.eps)
            return out.view_as(x)
        kept, mean, var, count = _Moments.apply(x, valid, keep)
        self._move(mean.detach(), var.detach(), count)
        # torch's kernel takes the statistics for constants; their gradient goes through what stands in for weight
        # and bias, and is equal to them.
        apart = (mean - mean.detach()) * (var.detach() + self.eps).rsqrt()
        weight = self.weight * ((var.detach() + self.eps) / (var + self.eps)).sqrt()
        return self._normalized(kept, mean.detach(), var.detach(), weight, self.bias - apart * weight)

    def _normalized(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x.flatten(0, -2), mean, var, weight, bias, False, 0.0, self.eps).view_as(x)

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """The running statistics; nothing moves where no element counted."""
        fraction = torch.where(count > 0, self.momentum, 0.0).to(self.running_mean.dtype)
        unbiased = var * (count / (count - 1).clamp(min=1)).to(var.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), fraction)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), fraction)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


class _Moments(torch.autograd.Function):
    """(T, ..., C) of every process -> the rows ``keep`` of it, and of all: mean, biased variance (C,), count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, valid: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if valid is not None:
            valid = valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim)).expand(*x.shape[:-1], 1)
        rows = x.flatten(0, -2)
        counted = None if valid is None else valid.reshape(-1, 1)
        own = x.new_tensor(len(rows), dtype=torch.float64) if valid is None else counted.sum(dtype=torch.float64)
        whole = add_over_processes(torch.cat([own[None], _sum(rows, counted).double()]))
        count, mean = whole[0], (whole[1:] / whole[0].clamp(min=1)).to(_kind(x))
        # Two passes: the difference of large sums would lose what a small variance needs.
        var = add_over_processes(_sum(rows, counted, mean)) / count.clamp(min=1).to(mean.dtype)
        ctx.save_for_backward(x, mean, count, valid, keep)
        ctx.mark_non_differentiable(count)
        return (x.view_as(x) if keep is None else x.index_select(0, keep)), mean, var, count

    @staticmethod
    def backward(ctx: Any, to_kept: Tensor, to_mean: Tensor, to_var: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        x, mean, count, valid, keep = ctx.saved_tensors
        # All processes' losses depend on these moments.
        to_mean, to_var = add_over_processes(torch.stack([to_mean, to_var])) / count.clamp(min=1).to(mean.dtype)
        slope = 2 * to_var
        grad = torch.addcmul((to_mean - slope * mean).to(x.dtype), x, slope.to(x.dtype))
        if valid is not None:
            grad.masked_fill_(~valid, 0)
        return (grad.add_(to_kept) if keep is None else grad.index_add_(0, keep, to_kept)), None, None


def _kind(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sum(rows: Tensor, counted: Tensor | None, mean: Tensor | None = None) -> Tensor:
    """Sum over the rows (n, C) that count, or with ``mean`` of their squared differences from it: (C,)."""
    total = torch.zeros(rows.shape[1], dtype=_kind(rows), device=rows.device)
    step = _AT_ONCE if rows.device.type == "cpu" else max(1, len(rows))
    masks = repeat(None) if counted is None else counted.split(step)
    for part, mask in zip(rows.split(step), masks, strict=False):
        values = part if mean is None else (part.to(mean.dtype) - mean).square_()
        total += (values if mask is None else torch.where(mask, values, 0)).sum(0, dtype=total.dtype)
    return total
