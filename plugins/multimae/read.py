"""Files of maps -> arrays (height, width, channels): 16-bit PNG, EXR, .npy, and whatever else holds pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maemm.data.arrays import open_array_file, plain

from .._images.load import EXTENSIONS, channels_first, read_image

ENDINGS = (*EXTENSIONS, ".exr")
_EXR = b"v/1\x01"
_DEPTH_CHANNELS = ("Z", "depth", "Y", "R")  # of an EXR file with several channels, the first that it has


def read_map(path: Path) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32; NaN and infinity stay. Raises ValueError or OSError with a short reason."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(_EXR):
        return _read_exr(path)
    if start == b"\x93NUMPY":
        return _read_npy(path)
    return read_image(path)


def read_depth(path: Path) -> np.ndarray:
    """:func:`read_map` of one channel, (H, W, 1); of an EXR file the channel Z, or else its first."""
    with open(path, "rb") as file:
        start = file.read(4)
    return _read_exr(path, one=True) if start == _EXR else read_map(path)


def read_labels(path: Path) -> np.ndarray:
    """(H, W, 1) whole numbers; a palette's indices, not its colours. Raises ValueError or OSError."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        with open_array_file(path, mmap=False) as stored:
            array = np.asarray(stored)
        if array.dtype.kind not in "biu":
            raise ValueError(f"holds {array.dtype}, and classes are whole numbers")
        return channels_last(np.ascontiguousarray(array.astype(np.int64)))
    labels = read_image(path, indices=True)
    if labels.shape[2] != 1:
        raise ValueError(
            f"has {labels.shape[2]} channels; a label map has one number for each pixel, not the colour of its class"
        )
    return labels


def channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W), where channels are the smaller of first and last, -> (H, W, C)."""
    if array.ndim == 3 and channels_first(array.shape):
        array = np.moveaxis(array, 0, -1)
    return array[..., None] if array.ndim == 2 else array


def _read_npy(path: Path) -> np.ndarray:
    with open_array_file(path, mmap=False) as stored:
        array = np.asarray(stored)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"a map has 2 or 3 dimensions and some pixels, this array has shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it holds {array.dtype}, not plain numbers")
    array = array if array.dtype == np.uint16 else plain(array)
    return np.ascontiguousarray(channels_last(array))


def _read_exr(path: Path, one: bool = False) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise ValueError("an EXR file; run: pip install 'maemm[exr]', or store 16-bit PNG or .npy") from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels: dict[str, Any] = {name: channel.pixels for name, channel in file.channels().items()}
    except MemoryError:
        raise
    except Exception as error:  # it raises RuntimeError and others
        raise ValueError(f"a damaged EXR file ({' '.join(str(error).split())})") from error
    if not channels:
        raise ValueError("an EXR file without channels")
    names = list(channels)
    if one:
        names = [next((name for name in _DEPTH_CHANNELS if name in channels), names[0])]
    elif {"R", "G", "B"} <= set(names):
        names = ["R", "G", "B", *(name for name in names if name not in "RGBA")]
    return np.stack([np.asarray(channels[name], np.float32) for name in names], -1)
