"""Checks of the options of a video modality, and of its frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maemm.contract.errors import MaemmError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def per_channel(
    option: Sequence[float] | None, default: Sequence[float], channels: int, name: str
) -> tuple[float, ...]:
    """One number per channel. Raises :class:`MaemmError` for another count."""
    values = tuple(map(float, default if option is None else option))
    if len(values) != channels:
        raise MaemmError(
            f"{name} has {len(values)} numbers for {channels} channels (modalities.video.{name}); give {channels}"
        )
    return values


def check_region(region: Sequence[float] | None) -> tuple[float, ...] | None:
    """The option ``region``. Raises :class:`MaemmError`."""
    if region is None:
        return None
    box = tuple(map(float, region))
    if not (box[2] and box[3]):
        raise MaemmError(f"region {list(box)} has no height or no width (modalities.video.region); make it larger")
    if box[0] + box[2] > 1 + 1e-6 or box[1] + box[3] > 1 + 1e-6:
        raise MaemmError(f"region {list(box)} extends beyond the frame (modalities.video.region); make it smaller")
    return box


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
