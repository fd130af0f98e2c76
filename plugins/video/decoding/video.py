"""A video that a worker has opened: the times of its frames, and their pixels on request."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .limits import check_bytes
from .watchdog import Decoder

if TYPE_CHECKING:
    from maemm.contract.rng import Rng

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TIMES = ".times.npy"  # in a folder of frames: (n,) the seconds at which they appear


class Video(ABC):
    """``times`` (n,) float64: the seconds at which frames appear, ascending. Frames are numbered in display order."""

    def __init__(self, times: np.ndarray, rng: Rng | None = None, part: tuple[int, int] = (0, -1)):
        """``rng``: shared by all repeats of this video; ``part``: first frame and number of frames, -1: all."""
        first, count = part
        if first < 0 or first >= max(len(times), 1) or (count != -1 and not 0 < count <= len(times) - first):
            raise ValueError(f"the list names frames {first} to {first + count - 1}, the video has {len(times)}")
        self.rng, self._first = rng, first
        self.times = times[first:] if count == -1 else times[first : first + count]
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """Duration, if the last frame is shown for as long as the one before."""
        return float(2 * self.times[-1] - self.times[-2] - self.times[0]) if len(self) > 1 else 0.0

    def frames_at(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB; the last request is cached. Raises ValueError or OSError."""
        request = tuple(int(i) + self._first for i in index)
        if self._last is None or self._last[0] != request:
            distinct, inverse = np.unique(request, return_inverse=True)
            frames = self._decode([int(i) for i in distinct])
            self._last = request, frames if len(distinct) == len(request) else frames[inverse]
        return self._last[1]

    @abstractmethod
    def _decode(self, index: list[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 of the frames ``index``, ascending without repeats."""


class VideoFile(Video):
    """A file, decoded by a :class:`~.watchdog.Decoder`."""

    def __init__(self, path: str | bytes, decoder: Decoder, rng: Rng | None = None, part: tuple[int, int] = (0, -1)):
        self.path, self._decoder = os.path.abspath(os.fsdecode(path)), decoder
        super().__init__(decoder.open(self.path), rng, part)

    def _decode(self, index: list[int]) -> np.ndarray:
        return self._decoder.frames_at(self.path, index)


class FrameFolder(Video):
    """A folder of images, one per frame, in the order of the numbers in their names.

    A file :data:`TIMES` may hold their times; otherwise ``fps`` gives them. The first frame of ``part`` is a number as
    in the file names, which may start at 0 or 1.
    """

    def __init__(self, path: str | bytes, rng: Rng | None = None, part: tuple[int, int] = (0, -1), fps: float = 25.0):
        self.path = os.fsdecode(path)
        names = (name for name in os.listdir(self.path) if name[0] != "." and name.lower().endswith(IMAGES))
        self.names = sorted(names, key=_natural)
        if not self.names:
            raise ValueError(f"holds no frames ({' '.join(IMAGES)})")
        numbers = re.findall(r"\d+", self.names[0])
        offset = max(0, part[0] - int(numbers[-1])) if numbers else part[0]
        times = _stored_times(os.path.join(self.path, TIMES))
        if times is None or len(times) != len(self.names):
            times = np.arange(len(self.names)) / fps
        super().__init__(times, rng, (offset, part[1]))

    def _decode(self, index: list[int]) -> np.ndarray:
        frames = [_picture(os.path.join(self.path, self.names[i])) for i in index]
        sizes = {frame.shape[:2] for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"frames differ in size: {', '.join(f'{h} x {w}' for h, w in sorted(sizes)[:3])}")
        check_bytes(len(frames), *frames[0].shape[:2])
        return np.stack(frames)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``img_2`` before ``img_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stored_times(path: str) -> np.ndarray | None:
    """(n,) float64 of a file of times; None if there is none. Raises ValueError for a broken one."""
    if not os.path.isfile(path):
        return None
    try:  # mapped: nothing is unpickled, and a header that declares more than the file holds is an error
        times = np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, TypeError, OverflowError):
        times = np.empty(0, object)
    if times.ndim != 1 or times.dtype.kind != "f" or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"{TIMES} does not hold ascending seconds; remove it, or pack the video again")
    return times


def _picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8 of a file, read as by the image plugin."""
    from ..._images.load import read_image
    from ..checks import as_bytes, as_colours

    return as_colours(as_bytes(read_image(path)), 3)
