"""Random crop boxes, by the rule of torchvision's RandomResizedCrop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, left, height, width

TRIES = 10  # as in torchvision
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
