"""Image files -> arrays: what a worker does before any crop.

Every reader returns (H, W, C) uint8 or uint16, where the type's maximum is white, or float32 as stored. The format
follows from the content, not from the name. A file that cannot be read completely is an exception, never a half grey
image.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from maemm.data.arrays import as_float32

from .tiff import dropped_bands, is_tiff, read_bands

# Pillow's other readers start external programs (EPS), or read only headers.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".npy"),
)

MOST_PIXELS = 178_956_970  # of a picture, unless data.source.most_pixels says so: Pillow's own limit

_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n": "PNG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}
_ORIENTATION = 0x0112
_GREY = ("L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_image(
    path: str | bytes | Path, background: int = 255, most_pixels: int = MOST_PIXELS, *, indices: bool = False
) -> np.ndarray:
    """Decode one file to (H, W, C), writable.

    EXIF orientation is applied. Grey stays one channel, 16-bit grey stays 16 bits, 1-bit becomes 0 and 255; palettes,
    CMYK and YCbCr become RGB. Transparent images are composed on the grey level ``background`` (255: white). Of an
    animation the first frame is read. The pages of a TIFF whose pages are grey and alike are its channels, and so are
    the bands of a TIFF that has others than colours and transparency. 16-bit RGB becomes 8-bit (a limit of Pillow);
    store such images as ``.npy``. ``indices``: palette images are their indices, 1-bit ones 0 and
    1, for label maps. Raises ValueError or OSError with a short reason.
    """
    data = _bytes(path)
    if data[:6] == b"\x93NUMPY":
        return read_array(path)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some packages set it when they are imported
    with warnings.catch_warnings(), _limit(most_pixels):
        warnings.simplefilter("ignore")  # odd EXIF, many pixels; what matters raises an error
        try:
            with Image.open(io.BytesIO(data), formats=_supported_formats()) as image:
                if image.format == "TIFF" and dropped_bands(image):
                    return plain_pixels(read_bands(data, most_pixels))
                if indices and image.mode in ("P", "1"):
                    return np.array(image).astype(np.uint8)[..., None]
                return _decode(image, background)
        except Image.DecompressionBombError as error:
            count = re.search(r"\d+", str(error))
            pixels = f"{int(count[0]):,}" if count else "its"
            raise ValueError(f"{pixels} pixels are more than {most_pixels:,} (data.source.most_pixels)") from None
        except UnidentifiedImageError:
            if is_tiff(data):
                return plain_pixels(read_bands(data, most_pixels))
            kind = next((name for start, name in _STARTS.items() if data.startswith(start)), None)
            if kind is not None:
                raise ValueError(f"a damaged {kind} file ({len(data):,} bytes)") from None
            raise ValueError(f"not a readable image (starts with {data[:8]!r})") from None


@contextmanager
def _limit(most_pixels: int) -> Iterator[None]:
    """Pillow's limit, which is a global: it refuses twice of it, and warns from it on."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-most_pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_array(path: str | bytes | Path) -> np.ndarray:
    """One image in a ``.npy`` file: (H, W), (H, W, C) or (C, H, W); :func:`channels_first` decides which."""
    # Mapped, so that a header which promises more than the file holds is noticed.
    stored = np.load(os.fsdecode(path), mmap_mode="r", allow_pickle=False)
    if stored.ndim not in (2, 3):
        raise ValueError(f"an image has 2 or 3 dimensions, this array has {stored.ndim}")
    if not stored.size:
        raise ValueError(f"no pixels (shape {stored.shape})")
    if stored.ndim == 3 and channels_first(stored.shape):
        stored = np.moveaxis(stored, 0, -1)
    return plain_pixels(stored.reshape(*stored.shape[:2], -1))


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether channels are the first of the last three dimensions: they are the smaller of first and last."""
    return shape[-3] < shape[-1]


def plain_pixels(array: np.ndarray) -> np.ndarray:
    """A writable copy as uint8, uint16 or float32, native byte order. Raises ValueError for types without a scale."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind != "f":
        raise ValueError(f"pixels are {array.dtype}, which does not say what white is; store uint8, uint16 or float32")
    pixels = as_float32(array)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{int((~np.isfinite(pixels)).sum())} pixels are not finite numbers")
    return pixels


@cache
def _supported_formats() -> list[str]:
    """The formats that this build of Pillow can read."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _bytes(path: str | bytes | Path) -> bytes:
    with open(path, "rb", opener=_open_nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not an ordinary file")
        data = file.read()
    if not data:
        raise ValueError("empty file (0 bytes)")
    return data


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block


def _decode(image: Image.Image, background: int) -> np.ndarray:
    count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    pages = _pages(image, count, background) if count > 1 else [_frame(image, background)]
    array = pages[0] if len(pages) == 1 else np.concatenate(pages, axis=-1)
    if not array.size:
        raise ValueError(f"no pixels (shape {array.shape})")
    return array


def _pages(image: Image.Image, count: int, background: int) -> list[np.ndarray]:
    """The ``count`` pages of a TIFF if they are grey and equal in size and type, otherwise the first."""
    size, mode = image.size, image.mode
    if mode not in _GREY:
        return [_frame(image, background)]
    limit = Image.MAX_IMAGE_PIXELS
    if limit and count * size[0] * size[1] > 2 * limit:
        raise ValueError(f"{count} pages of {size[0]} x {size[1]} are too many pixels (data.source.most_pixels)")
    pages: list[np.ndarray] = []
    for number in range(count):
        image.seek(number)
        if (image.size, image.mode) != (size, mode):  # a thumbnail or a pyramid
            return pages[:1]
        pages.append(_frame(image, background))
    return pages


def _frame(image: Image.Image, background: int) -> np.ndarray:
    """The current frame -> (H, W, C)."""
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _opaque(image, background)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def _deep(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits: uint16, or float32 as stored."""
    array = np.array(image)[..., None]
    if image.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(f"32-bit grey from {array.min()} to {array.max()} has no scale; store 16 bits or float32")
        array = array.astype(np.uint16)
    return plain_pixels(array)


def _opaque(image: Image.Image, background: int) -> Image.Image:
    grey = image.mode in ("L", "LA", "La")
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(below, image).convert("L" if grey else "RGB")
