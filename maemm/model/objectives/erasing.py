"""Random erasing (Zhong et al. 2020): boxes of a batch replaced with noise, in a fixed number of launches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Preprocessed
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.objectives.mixing import SizeCheck, planes_of

AREA = (0.02, 1 / 3)  # of a box, as a fraction of the picture's; this and what follows as timm's RandomErasing
ASPECT = (0.3, 1 / 0.3)  # height / width
TRIES = 10  # of a box that fits
DRAWS = 1 + 4 * TRIES  # uniform numbers for whether to erase and for one box


def erase(name: str, batch: Preprocessed, rng: Rng, probability: float, sizes: SizeCheck) -> Preprocessed:
    """With ``probability``, replace a box of each sample with noise, normal for each pixel.

    x (B, C, ..., H, W): a sample's box is the same in all of its planes. Boxes are drawn on the host, which so knows
    how many pixels to draw noise for: nobody waits, and the noise is drawn for these alone. Raises
    :class:`MaemmError` where samples are no pictures, or differ in size.
    """
    planes = planes_of(name, batch, rng, sizes)
    count, height, width = planes.shape[1:]
    sample, box = boxes(rng.uniform(f"erase/{name}", DRAWS), height, width, probability)
    top, left, high, wide = box.T
    area = high * wide
    ends = np.cumsum(area)
    columns = np.stack([sample, top * width + left, wide, ends - area])
    device = planes.device
    # A number for each pixel of a box: which box it is of, then its place in the plane.
    number = torch.arange(int(area.sum()), device=device)
    of_box = torch.searchsorted(small_tensor(ends.tolist(), device, torch.long), number, right=True)
    table = small_tensor(columns.tolist(), device, torch.long)
    row, first, wide_of, start = table.index_select(1, of_box)
    number -= start
    first += number
    first += number.div(wide_of, rounding_mode="trunc").mul_(width - wide_of)
    places = torch.arange(count, device=device)[:, None] * (height * width) + first
    noise = normal(rng.uniform_at(f"erase/{name}/noise", row, places))
    index = places.add_(row.mul_(count * height * width))
    x = planes.flatten().scatter(0, index.flatten(), noise.flatten().to(planes.dtype))
    return replace(batch, x=x.view(batch.x.shape))


def boxes(uniform: Tensor, height: int, width: int, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """(B, DRAWS) in [0, 1), on the host -> which E of the B samples are erased, and (E, 4): top, left, height, width.

    Up to ten times an area (uniform) and an aspect ratio (log-uniform) are drawn; the first box that is smaller than
    the picture on both axes is placed uniformly. If none is, nothing is erased.
    """
    coin, draws = uniform[:, 0].numpy(), uniform[:, 1:].double().numpy()
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0::4]) * (height * width)
    aspect = np.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * draws[:, 1::4])
    high, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    top, left = np.floor(draws[:, 2::4] * (height - high + 1)), np.floor(draws[:, 3::4] * (width - wide + 1))
    fits = (high < height) & (wide < width)
    first = fits.argmax(1)
    box = np.stack([top, left, high, wide], 2)[np.arange(len(first)), first].astype(np.int64)
    (sample,) = np.nonzero((coin < probability) & fits.any(1) & (box[:, 2] * box[:, 3] > 0))
    return sample, box[sample]


def normal(uniform: Tensor) -> Tensor:
    """Numbers in [0, 1), float32 -> from a normal distribution, by the inverse of its cumulative function; in place."""
    return uniform.clamp_(min=2.0**-25).mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2))
