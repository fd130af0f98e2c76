"""Batch normalisation with the statistics of the global batch, on any device and with padding."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from maemm.model.collectives import all_reduce_sum, is_distributed

_CPU_ROWS = 1024  # rows that a CPU processes at a time: the intermediate values then stay in its cache


class BatchNorm(nn.Module):
    """Normalise the channels of (..., C) over all other axes and over ranks (Ioffe and Szegedy 2015).

    In training mode n ranks with a part of the batch each compute the values and gradients that one rank with the whole
    batch computes; torch's ``SyncBatchNorm`` does so on GPUs only. Parameters and buffers have torch's names, and the
    running variance is unbiased, as in torch. Statistics are float32 (float64 for float64 inputs), also under autocast.

    The output of a sample depends on the others (``coupled``): a model with such a layer refuses to split its batch
    into micro-batches unless the part that owns the layer allows it with ``per_micro_batch``.
    """

    coupled = True
    weight: Tensor  # a parameter, or without ``affine`` a buffer
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

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
        """(T, ..., C) -> (T, ..., C), or with ``keep`` (m,) int64 only these indices of the first axis: (m, ..., C).

        ``valid``: bool, shaped like the first axes of ``x``: which elements the statistics include. They do not depend
        on ``keep``.
        """
        if not self.training:
            x = x if keep is None else x.index_select(0, keep)
            return self._normalized(x, self.running_mean, self.running_var, self.weight, self.bias)
        self.num_batches_tracked += 1
        if valid is None and keep is None and not is_distributed() and x.shape[:-1].numel() > 1:
            running = self.running_mean, self.running_var
            out = batch_norm(x.flatten(0, -2), *running, self.weight, self.bias, True, self.momentum, self.eps)
            return out.view_as(x)
        x, mean, var, count = _Moments.apply(x, valid, keep)
        self._update_running(mean.detach(), var.detach(), count)
        # torch's kernel treats the statistics as constants. Their gradients flow through a weight and a bias that have
        # the same values as the parameters.
        shift = (mean - mean.detach()) * (var.detach() + self.eps).rsqrt()
        weight = self.weight * ((var.detach() + self.eps) / (var + self.eps)).sqrt()
        return self._normalized(x, mean.detach(), var.detach(), weight, self.bias - shift * weight)

    def _normalized(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x.flatten(0, -2), mean, var, weight, bias, False, 0.0, self.eps).view_as(x)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics, unless ``count``, the number of valid elements, is 0."""
        fraction = torch.where(count > 0, self.momentum, 0.0).to(self.running_mean.dtype)
        unbiased = var * (count / (count - 1).clamp(min=1)).to(var.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), fraction)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), fraction)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


class _Moments(torch.autograd.Function):
    """x (T, ..., C) of every rank -> x[keep], and over all ranks the mean (C,), biased variance (C,) and count ()."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, valid: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if valid is not None:
            valid = valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim)).expand(*x.shape[:-1], 1)
        rows = x.flatten(0, -2)
        counted = None if valid is None else valid.reshape(-1, 1)
        own = x.new_full((), len(rows), dtype=torch.float64) if counted is None else counted.sum(dtype=torch.float64)
        whole = all_reduce_sum(torch.cat([own[None], _sum(rows, counted).double()]))
        count, mean = whole[0], (whole[1:] / whole[0].clamp(min=1)).to(_statistics_dtype(x))
        # Two passes: a small variance cannot be computed as the difference of two large sums.
        var = all_reduce_sum(_sum(rows, counted, mean)) / count.clamp(min=1).to(mean.dtype)
        ctx.save_for_backward(x, mean, count, valid, keep)
        ctx.mark_non_differentiable(count)
        return (x.view_as(x) if keep is None else x.index_select(0, keep)), mean, var, count

    @staticmethod
    def backward(ctx: Any, to_x: Tensor, to_mean: Tensor, to_var: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        x, mean, count, valid, keep = ctx.saved_tensors
        # The losses of all ranks depend on these moments.
        to_mean, to_var = all_reduce_sum(torch.stack([to_mean, to_var])) / count.clamp(min=1).to(mean.dtype)
        slope = 2 * to_var
        grad = torch.addcmul((to_mean - slope * mean).to(x.dtype), x, slope.to(x.dtype))
        if valid is not None:
            grad.masked_fill_(~valid, 0)
        return (grad.add_(to_x) if keep is None else grad.index_add_(0, keep, to_x)), None, None


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sum(rows: Tensor, counted: Tensor | None, mean: Tensor | None = None) -> Tensor:
    """Sum over the counted rows (n, C), or with ``mean`` the sum of their squared differences from it: (C,)."""
    total = torch.zeros(rows.shape[1], dtype=_statistics_dtype(rows), device=rows.device)
    step = _CPU_ROWS if rows.device.type == "cpu" else max(1, len(rows))
    masks = repeat(None) if counted is None else counted.split(step)
    for part, mask in zip(rows.split(step), masks, strict=False):
        values = part if mean is None else (part.to(mean.dtype) - mean).square_()
        total += (values if mask is None else torch.where(mask, values, 0)).sum(0, dtype=total.dtype)
    return total
