"""Checks of the options of a video modality, and of the frames that it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maemm.contract.errors import MaemmError

from .crop import RandomCrop

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def three_axes(size: Sequence[int], patch: Sequence[int]) -> None:
    """A clip has three axes. Raises :class:`MaemmError`."""
    for name, value in (("size", size), ("patch", patch)):
        if isinstance(value, int) or len(value) != 3:
            raise MaemmError(f"a clip has three axes, got {name} {value}; give [frames, height, width]")


def numbers(**given: float | None) -> None:
    """Options that must be positive. Raises :class:`MaemmError`."""
    for name, value in given.items():
        if value is not None and not value > 0:
            raise MaemmError(f"{name} is {value} (modalities.video.{name}); it must be above 0")


def per_channel(given: Sequence[float] | None, default: Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    """One number per channel; divisors must be positive. Raises :class:`MaemmError`."""
    values = tuple(float(one) for one in (default if given is None else given))
    if len(values) != channels:
        raise MaemmError(
            f"{name} has {len(values)} numbers for {channels} channels (modalities.video.{name}); give {channels}"
        )
    if name == "std" and min(values) <= 0:
        raise MaemmError(f"std is {list(values)} (modalities.video.std); all numbers must be above 0")
    return values


def crop(given: RandomCrop | Mapping | str | None) -> RandomCrop | str | None:
    """The crop option. Raises :class:`MaemmError`."""
    if isinstance(given, Mapping):
        given = RandomCrop(**given)
    if isinstance(given, RandomCrop):
        if not 0 < given.scale[0] <= given.scale[1] <= 1:
            raise MaemmError(f"crop.scale is {list(given.scale)} (modalities.video.crop); give 0 < low <= high <= 1")
        if not 0 < given.ratio[0] <= given.ratio[1]:
            raise MaemmError(f"crop.ratio is {list(given.ratio)} (modalities.video.crop); give 0 < low <= high")
    elif given not in ("multiscale", "center", None):
        raise MaemmError(
            f"crop is {given!r} (modalities.video.crop); give multiscale, {{scale, ratio}}, center or null"
        )
    return given


def region(given: Sequence[float] | None) -> tuple[float, ...] | None:
    """The region option. Raises :class:`MaemmError`."""
    if given is None:
        return None
    part = tuple(float(one) for one in given)
    if len(part) != 4 or not all(0 <= one <= 1 for one in part) or not (part[2] and part[3]):
        raise MaemmError(
            f"region is {list(part)} (modalities.video.region); give [top, left, height, width] as shares of the frame"
        )
    if part[0] + part[2] > 1 + 1e-6 or part[1] + part[3] > 1 + 1e-6:
        raise MaemmError(f"region {list(part)} reaches beyond the frame (modalities.video.region); make it smaller")
    return part


def tta_views(given: Sequence[int]) -> tuple[int, int]:
    """The views option. Raises :class:`MaemmError`."""
    clips, crops = given
    if clips < 1 or crops < 1:
        raise MaemmError(
            f"tta_views is {list(given)} (modalities.video.tta_views); give [clips, crops], 1 or more each"
        )
    return clips, crops


def as_bytes(frames: np.ndarray) -> np.ndarray:
    """Pixels as uint8: of 16 bits, or floats of 0 .. 1. Raises ValueError for others."""
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype == np.uint16:
        return (frames >> 8).astype(np.uint8)
    if frames.dtype.kind == "f" and np.isfinite(frames).all() and frames.min() >= -0.01 and frames.max() <= 1.01:
        return (frames.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    raise ValueError(f"pixels are {frames.dtype} of an unknown range; give uint8, uint16, or floats of 0 to 1")


def colours(frames: np.ndarray, channels: int) -> np.ndarray:
    """(T, H, W, C) -> as many colours as the model takes: grey is repeated, RGB becomes grey. Raises ValueError."""
    have = frames.shape[-1]
    if have == channels:
        return frames
    if have == 1:
        return np.repeat(frames, channels, axis=-1)
    if have == 3 and channels == 1:
        return (frames @ np.array(_LUMA, np.float32) + 0.5).astype(np.uint8)[..., None]
    raise ValueError(f"has {have} channels, the model takes {channels} (modalities.video.channels)")
