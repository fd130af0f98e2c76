"""Overlapping patches: cut with a stride, and put back together as the mean where they overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError


def grid_of(size: tuple[int, ...], patch: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis; what the last one does not reach is left out (AudioMAE: 1024 x 128 -> 101 x 12)."""
    if any(step < 1 or side < length for side, length, step in zip(size, patch, stride, strict=True)):
        raise MaemmError(f"patch {patch} with stride {stride} does not fit size {size} (modalities.audio.stride)")
    return tuple((side - length) // step + 1 for side, length, step in zip(size, patch, stride, strict=True))


def cut(x: Tensor, patch: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """(B, H, W) -> (B, N, patch values), both in raster order."""
    return x.unfold(1, patch[0], stride[0]).unfold(2, patch[1], stride[1]).flatten(3).flatten(1, 2)


def put(
    values: Tensor,
    index: Tensor | None,
    count: int,
    size: tuple[int, ...],
    patch: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    """(R, M, P) of the tokens ``index`` -> (R, H, W); NaN where there is no token."""
    if index is None:
        index = torch.arange(count, device=values.device).expand(values.shape[0], -1)
    positions = cut(torch.arange(size[0] * size[1], device=values.device).view(1, *size), patch, stride)[0]  # (N, P)
    into = positions[index].flatten(1)
    finite = ~values.isnan()
    total, times = (values.new_zeros(values.shape[0], size[0] * size[1]) for _ in range(2))
    total.scatter_add_(1, into, values.nan_to_num().flatten(1))
    times.scatter_add_(1, into, finite.to(values.dtype).flatten(1))
    return torch.where(times > 0, total / times, torch.nan).view(-1, *size)
