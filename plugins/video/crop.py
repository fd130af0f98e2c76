"""Crop boxes (top, left, height, width) in pixels, one for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from maemm.contract.options import Interval, Positive, PositiveFraction

from .._images.boxes import Box

SCALES = (1.0, 0.875, 0.75, 0.66)  # of the short side, in VideoMAE's multi-scale crop
_NEAR = 3  # pixels: a side this close to the model's becomes equal to it
#: positions of a box in quarters of the free space (left, top): corners and centre, then the eight between
_POSITIONS = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
MULTISCALE_DRAWS = 2  # uniform numbers that multiscale_box uses


class RandomCrop(BaseModel):
    """A random box, resized to the model's size."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: Interval[PositiveFraction] = Field(default=(0.5, 1.0), description="fraction of the frame's area")
    ratio: Interval[Positive] = Field(default=(3 / 4, 4 / 3), description="width / height")


def multiscale_box(uniform: Sequence[float], height: int, width: int, size: tuple[int, int]) -> Box:
    """The multi-scale crop of VideoMAE (from TSN), from ``MULTISCALE_DRAWS`` uniform numbers in [0, 1).

    Height and width are ``SCALES`` of the short side, at most one step apart, at one of 13 fixed positions.
    """
    sides = [int(min(height, width) * scale) for scale in SCALES]
    highs = [size[0] if abs(side - size[0]) < _NEAR else side for side in sides]
    wides = [size[1] if abs(side - size[1]) < _NEAR else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(highs) for j, w in enumerate(wides) if abs(i - j) <= 1]
    high, wide = pairs[int(uniform[0] * len(pairs))]
    high, wide = max(1, min(high, height)), max(1, min(wide, width))
    left, top = _POSITIONS[int(uniform[1] * len(_POSITIONS))]
    return top * ((height - high) // 4), left * ((width - wide) // 4), high, wide


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest centred box with the aspect ratio of ``size``."""
    factor = min(height / size[0], width / size[1])
    h, w = (max(1, min(have, round(want * factor))) for want, have in zip(size, (height, width), strict=True))
    return (height - h) // 2, (width - w) // 2, h, w


def region_box(height: int, width: int, region: Sequence[float]) -> Box:
    """The box of a ``region`` in fractions of the frame: top, left, height, width; at least one pixel."""
    top, left = (min(int(region[i] * side + 0.5), side - 1) for i, side in enumerate((height, width)))
    high, wide = (int(region[i + 2] * side + 0.5) for i, side in enumerate((height, width)))
    return top, left, max(1, min(high, height - top)), max(1, min(wide, width - left))


def view_boxes(height: int, width: int, size: tuple[int, int], crops: int) -> list[Box]:
    """``crops`` boxes with the aspect ratio of ``size`` along the longer side, end to end (VideoMAE's test)."""
    top, left, high, wide = center_box(height, width, size)
    if crops == 1:
        return [(top, left, high, wide)]
    fractions = [number / (crops - 1) for number in range(crops)]
    return [(int(fraction * (height - high)), int(fraction * (width - wide)), high, wide) for fraction in fractions]
