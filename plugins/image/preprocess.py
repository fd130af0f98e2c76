"""Batched work on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_float(x: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 0 .. 1; other types are only converted to float32."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images (B, C, H, W) where ``mirrored`` (B,) bool says so."""
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def crop_resize(x: Tensor, boxes: Tensor, size: Sequence[int], kernel: str) -> Tensor:
    """Crop ``boxes`` (B, 4) out of the images (B, C, H, W) float and resize them to ``size``, antialiased.

    Each axis is one batched matrix product. The matrices hold the kernels that Pillow and torch use with
    ``antialias=True`` (cubic with a = -0.5, or a triangle, widened by the scale when shrinking), so the result equals
    cropping and resizing each image by itself.
    """
    boxes = boxes.to(x.device, non_blocking=True).float()
    rows = _resize_matrix(boxes[:, 0], boxes[:, 2], x.shape[-2], size[0], kernel)
    columns = _resize_matrix(boxes[:, 1], boxes[:, 3], x.shape[-1], size[1], kernel)
    with torch.autocast(x.device.type, enabled=False):
        return rows[:, None] @ x @ columns[:, None].transpose(-1, -2)


def _resize_matrix(start: Tensor, length: Tensor, have: int, want: int, kernel: str) -> Tensor:
    """(B, want, have) float32: weights that resample [start, start + length) of ``have`` pixels to ``want``."""
    start, length = start[:, None, None], length[:, None, None]
    pixel = torch.arange(have, device=start.device)
    step = length / want
    centre = start + (torch.arange(want, device=start.device)[:, None] + 0.5) * step
    distance = ((pixel + 0.5 - centre) / step.clamp(min=1)).abs()
    weights = _KERNELS[kernel](distance) * ((pixel >= start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def _triangle(d: Tensor) -> Tensor:
    return (1 - d).clamp(min=0)


def _cubic(d: Tensor) -> Tensor:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981), a = -0.5."""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))


_KERNELS = {"bicubic": _cubic, "bilinear": _triangle}
