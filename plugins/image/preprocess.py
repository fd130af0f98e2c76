"""Batched work on the device, and the crop boxes that worker and device share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, left, height, width

TRIES = 10  # of a random box, as in torchvision
DRAWS = 4 * TRIES  # uniform numbers for one box


def random_box(
    uniform: Sequence[float], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> Box:
    """The rule of torchvision's RandomResizedCrop, from ``DRAWS`` uniform numbers in [0, 1).

    Up to ten times an area (uniform in ``scale``, fraction of the image) and an aspect ratio width / height
    (log-uniform in ``ratio``) are drawn; the first box that fits is placed uniformly. If none fits: the largest box
    in the centre whose aspect ratio is in the range.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(0, DRAWS, 4):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[i])
        aspect = math.exp(low + (high - low) * uniform[i + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform[i + 2] * (height - h + 1)), int(uniform[i + 3] * (width - w + 1)), h, w
    return centred_box(height, width, ratio)


def centred_box(height: int, width: int, ratio: Sequence[float]) -> Box:
    """The largest box in the centre whose aspect ratio width / height is in the range."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_boxes(uniform: Tensor, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """:func:`random_box` for each row of ``uniform`` (B, DRAWS), on the host -> (B, 4) int64, without a loop over B."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws = uniform.double().numpy()
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, 0::4])
    aspect = np.exp(low + (high - low) * draws[:, 1::4])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    tries = np.stack([draws[:, 2::4] * (height - h + 1), draws[:, 3::4] * (width - w + 1), h, w], 2)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    boxes = tries[np.arange(len(tries)), fits.argmax(1)].astype(np.int64)
    return torch.from_numpy(np.where(fits.any(1, keepdims=True), boxes, centred_box(height, width, ratio)))


def as_float(x: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 0 .. 1; other types are only converted to float32."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def flip(x: Tensor, uniform: Tensor) -> Tensor:
    """Mirror the images (B, C, H, W) whose number in ``uniform`` (B,) is below 0.5."""
    mirrored = (uniform < 0.5).to(x.device, non_blocking=True)
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
