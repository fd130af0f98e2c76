"""TIFF files that Pillow cannot read, or of which it drops bands: many bands, float colours, 64 bits. Through tifffile.

The extra ``tiff`` installs it. Pillow keeps reading all others, so that they are the same with and without it.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_SAMPLES, _EXTRA = 277, 338  # tags: bands, and what those beyond the colours mean
_ALPHA = (1, 2)  # of the latter
_MOST_VALUES = 4  # for each pixel that is allowed: many bands of fewer pixels

#: EXIF orientation -> (H, W, C) as it is to be shown
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def is_tiff(data: bytes) -> bool:
    """Whether a file begins like a TIFF."""
    return data[:4] in _STARTS


def dropped_bands(image: Image.Image) -> bool:
    """Whether Pillow would drop bands of an opened TIFF: it takes any fourth band that is no alpha for filling."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return False
    extra = tags.get(_EXTRA, ())
    alpha = sum(kind in _ALPHA for kind in (extra if isinstance(extra, tuple) else (extra,)))
    return int(tags.get(_SAMPLES, 1)) > len(image.getbands()) + (alpha if "A" not in image.mode.upper() else 0)


def read_bands(data: bytes, most_pixels: int) -> np.ndarray:
    """The first image of a TIFF with all its bands, or pages that are alike as its bands -> (H, W, C) as stored.

    Raises ValueError with the reason where it cannot be read.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            pixels = math.prod(size for axis, size in zip(axes, shape, strict=True) if axis in "YX")
            if pixels > most_pixels or math.prod(shape) > _MOST_VALUES * most_pixels:
                raise ValueError(f"{pixels:,} pixels are more than {most_pixels:,} (data.source.most_pixels)")
            orientation = getattr(series.keyframe.tags.get("Orientation"), "value", 1)
            array = _bands_last(series.asarray(), axes)
    except (OSError, MemoryError, ValueError):
        raise
    except Exception as error:  # it raises its own types, and those of its codecs
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    turn = _TURNS.get(int(orientation))
    return np.ascontiguousarray(array if turn is None else turn(array))


def _bands_last(array: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, C): bands where there are some, else the pages; of pages with bands the first."""
    others = axes.replace("Y", "").replace("X", "")
    while len(others) > 1:  # the axis of the bands is S
        axis = next(axis for axis in others if axis != "S")
        array, axes, others = array.take(0, axes.index(axis)), axes.replace(axis, "", 1), others.replace(axis, "", 1)
    order = [axes.index("Y"), axes.index("X"), *(axes.index(axis) for axis in others)]
    array = array.transpose(order)
    return array if others else array[..., None]


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "a TIFF that Pillow cannot read: it has more bands than RGB, float colours or 64 bits, or is damaged; "
            "run: pip install 'maemm[tiff]'"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it writes what it also raises to stderr
    return tifffile
