"""Maps of regions of a picture: Felzenszwalb's segmentation, made in the worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from maemm.contract.errors import NotInstalled
from maemm.contract.options import NonNegative, Positive, PositiveInt
from maemm.contract.rng import Rng

NO_REGION = 255  # the label of pixels of no region
MOST = NO_REGION  # regions of a picture, whose labels are 0 .. MOST - 1


class Felzenszwalb(BaseModel):
    """How regions are found (Felzenszwalb and Huttenlocher 2004), in pixels of the picture that the model sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: Positive | list[Positive] = Field(default=1000.0, description="larger ones make larger regions; or several")
    sigma: NonNegative = Field(default=0.8, description="of the Gaussian that smooths the picture before")
    min_size: PositiveInt = Field(default=1000, description="pixels of a region at least")

    @property
    def scales(self) -> Sequence[float]:
        return self.scale if isinstance(self.scale, list) else [self.scale]


def region_maps(x: Tensor, how: Felzenszwalb, rng: Rng | None) -> Tensor:
    """A picture (C, H, W), uint8 or float 0 .. 1 -> labels of its regions (S, H, W) uint8, a map for each scale.

    Labels are different in all maps and in the order in which regions are to be chosen: random, or with ``rng=None``
    by size, the largest first. Regions after the first :data:`MOST` become :data:`NO_REGION`. Raises
    :class:`NotInstalled` without scikit-image.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise NotInstalled(
            "scikit-image, which finds regions, is not installed (side input regions); run: pip install "
            "'maemm[regions]'"
        ) from None
    picture = np.ascontiguousarray(x.permute(1, 2, 0).numpy())
    maps, count = [], 0
    for scale in how.scales:
        labels = felzenszwalb(picture, scale=scale, sigma=how.sigma, min_size=how.min_size, channel_axis=-1)
        maps.append(labels + count)
        count += int(labels.max()) + 1
    labels = np.stack(maps)
    if rng is None:
        chosen_first = np.argsort(-np.bincount(labels.ravel(), minlength=count), kind="stable")
    else:
        chosen_first = rng.numpy("regions").permutation(count)
    rank = np.empty(count, np.int64)
    rank[chosen_first] = np.arange(count)
    return torch.from_numpy(np.minimum(rank, NO_REGION).astype(np.uint8)[labels])


def painted(labels: Tensor, picture: Tensor) -> Tensor:
    """Labels (B, S, H, W) and pictures (B, C, H, W) -> every region of the first map in its mean colour."""
    first = labels[:, 0].flatten(1).long()
    values = picture.flatten(2)
    index = first[:, None].expand_as(values)
    sums = values.new_zeros(*values.shape[:2], NO_REGION + 1).scatter_add_(2, index, values)
    counts = values.new_zeros(len(values), 1, NO_REGION + 1).scatter_add_(
        2, first[:, None], torch.ones_like(values[:, :1])
    )
    return (sums / counts.clamp(min=1)).gather(2, index).view_as(picture)
