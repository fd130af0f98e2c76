"""Resize cropped clips of different sizes to one size, batched on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize_clips(x: Tensor, sides: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """uint8 clips (B, T, H, W, C), of which ``sides`` (h, w) are in use -> float32 (B, C, T, *size) in 0 .. 1.

    Bilinear with antialiasing, as Pillow. On a GPU each axis is one batched matrix product in float32; on a CPU torch
    resizes uint8, clip by clip, and rounds as Pillow does.
    """
    if all(tuple(side) == tuple(size) for side in sides):
        return _float(x.permute(0, 4, 1, 2, 3))
    if _on_cpu(x):
        return _float(torch.stack([_resized(clip[:, :h, :w], size) for clip, (h, w) in zip(x, sides, strict=True)]))
    lengths = torch.tensor(sides, dtype=torch.float32).to(x.device, non_blocking=True)
    rows, columns = (_matrix(lengths[:, i], x.shape[2 + i], size[i]) for i in (0, 1))
    batch, frames, height, width, channels = x.shape
    planes = _float(x.permute(0, 4, 1, 2, 3)).reshape(batch, channels * frames, height, width)
    with torch.autocast(x.device.type, enabled=False):
        planes = rows[:, None] @ planes @ columns[:, None].transpose(-1, -2)
    return planes.unflatten(1, (channels, frames))


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """One uint8 clip (T, H, W, C) -> (T, *size, C) uint8: for workers, if frames are far larger than needed."""
    return _resized(x, size).permute(1, 2, 3, 0).contiguous()


def _resized(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, h, w, C) uint8 -> (C, T, *size) uint8."""
    frames = clip.permute(0, 3, 1, 2)
    if frames.shape[2:] != size:
        frames = interpolate(frames, size, mode="bilinear", antialias=True)
    return frames.transpose(0, 1)


def _float(x: Tensor) -> Tensor:
    return x.float().contiguous() / 255


def _matrix(length: Tensor, old: int, new: int) -> Tensor:
    """(B, new, old): the weights that resize the first ``length`` (B,) of ``old`` pixels to ``new``."""
    length = length[:, None, None]
    pixel = torch.arange(old, device=length.device)
    step = length / new
    centre = (torch.arange(new, device=length.device)[:, None] + 0.5) * step
    weights = (1 - ((pixel + 0.5 - centre) / step.clamp(min=1)).abs()).clamp(min=0) * (pixel < length)
    return weights / weights.sum(-1, keepdim=True)
