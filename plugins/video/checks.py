"""Checks of the options of a video modality, and of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError

from .crop import RandomCrop

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def check_axes(size: Sequence[int], patch: Sequence[int]) -> None:
    """Raises :class:`MaemmError` unless both have three axes."""
    for name, value in (("size", size), ("patch", patch)):
        if isinstance(value, int) or len(value) != 3:
            raise MaemmError(f"a clip has three axes, got {name} {value}; give [frames, height, width]")


def check_positive(**options: float | None) -> None:
    """Raises :class:`MaemmError` for options that are not positive or None."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise MaemmError(f"{name} is {value} (modalities.video.{name}); it must be above 0")


def per_channel(
    option: Sequence[float] | None, default: Sequence[float], channels: int, name: str
) -> tuple[float, ...]:
    """One number per channel. Raises :class:`MaemmError` for another count, or a ``std`` that is not positive."""
    values = tuple(map(float, default if option is None else option))
    if len(values) != channels:
        raise MaemmError(
            f"{name} has {len(values)} numbers for {channels} channels (modalities.video.{name}); give {channels}"
        )
    if name == "std" and min(values) <= 0:
        raise MaemmError(f"std is {list(values)} (modalities.video.std); all numbers must be above 0")
    return values


def check_crop(crop: RandomCrop | Mapping[str, Any] | str | None) -> RandomCrop | str | None:
    """The option ``crop``. Raises :class:`MaemmError`."""
    if isinstance(crop, Mapping):
        crop = RandomCrop(**crop)
    if isinstance(crop, RandomCrop):
        if not 0 < crop.scale[0] <= crop.scale[1] <= 1:
            raise MaemmError(f"crop.scale is {list(crop.scale)} (modalities.video.crop); give 0 < low <= high <= 1")
        if not 0 < crop.ratio[0] <= crop.ratio[1]:
            raise MaemmError(f"crop.ratio is {list(crop.ratio)} (modalities.video.crop); give 0 < low <= high")
    elif crop not in ("multiscale", "center", None):
        raise MaemmError(f"crop is {crop!r} (modalities.video.crop); give multiscale, {{scale, ratio}}, center or null")
    return crop


def check_region(region: Sequence[float] | None) -> tuple[float, ...] | None:
    """The option ``region``. Raises :class:`MaemmError`."""
    if region is None:
        return None
    box = tuple(map(float, region))
    if len(box) != 4 or not all(0 <= side <= 1 for side in box) or not (box[2] and box[3]):
        raise MaemmError(
            f"region is {list(box)} (modalities.video.region); give [top, left, height, width], fractions of the frame"
        )
    if box[0] + box[2] > 1 + 1e-6 or box[1] + box[3] > 1 + 1e-6:
        raise MaemmError(f"region {list(box)} extends beyond the frame (modalities.video.region); make it smaller")
    return box


def check_tta_views(views: Sequence[int]) -> tuple[int, int]:
    """The option ``tta_views``. Raises :class:`MaemmError`."""
    clips, crops = views
    if clips < 1 or crops < 1:
        raise MaemmError(
            f"tta_views is {list(views)} (modalities.video.tta_views); give [clips, crops], 1 or more each"
        )
    return clips, crops


def as_bytes(frames: np.ndarray) -> np.ndarray:
    """uint8 pixels from uint8, uint16, or floats in 0 .. 1. Raises ValueError for others."""
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype == np.uint16:
        return (frames >> 8).astype(np.uint8)
    if frames.dtype.kind == "f" and np.isfinite(frames).all() and frames.min() >= -0.01 and frames.max() <= 1.01:
        return (frames.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    raise ValueError(f"pixels are {frames.dtype} of an unknown range; give uint8, uint16, or floats in 0 to 1")


def as_colours(frames: np.ndarray, channels: int) -> np.ndarray:
    """(T, H, W, C) -> (T, H, W, channels): grey is repeated, RGB becomes grey. Raises ValueError for other cases."""
    have = frames.shape[-1]
    if have == channels:
        return frames
    if have == 1:
        return np.repeat(frames, channels, axis=-1)
    if have == 3 and channels == 1:
        return (frames @ np.array(_LUMA, np.float32) + 0.5).astype(np.uint8)[..., None]
    raise ValueError(f"has {have} channels, the model expects {channels} (modalities.video.channels)")
