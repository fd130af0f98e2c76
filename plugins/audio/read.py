"""Sound files, read in parts: only what a sample needs is decoded. ``.._sounds`` opens them.

Values are float32 -1 .. 1, whatever the bit depth. MP3 has no index: seeking reads all frame headers up to the position
(44 ms for 15 minutes).
"""

from __future__ import annotations

import atexit
import os
import stat
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from .._sounds.files import SoundStream, open_sound
from .._sounds.promises import truncation_reason

EXTENSIONS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
    *(".w64", ".rf64", ".m4a", ".aac", ".wma", ".mka"),
)
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp")

Truncated = Literal["refuse", "read"]


@dataclass(frozen=True)
class Recording:
    """A sound file, or a part of one, read on demand. It holds no open file, so it can be pickled."""

    path: bytes
    rate: int
    channels: int
    length: int  # samples
    first: int = 0  # sample of the file at which this recording begins
    truncated: Truncated = "refuse"

    @classmethod
    def open(cls, path: str | bytes | os.PathLike, truncated: Truncated = "refuse") -> Recording:
        """Read the header. Raises ValueError or OSError with a short reason.

        ``truncated``: refuse files that end before their header says, or read what there is.
        """
        path = os.fsencode(path)
        _check_file(path, truncated)
        file = _file(path)
        if file.rate < 1 or file.channels < 1:  # PyAV may go by the name of a broken file
            raise ValueError(f"not a readable sound ({file.rate} Hz, {file.channels} channels)")
        return cls(path, file.rate, file.channels, file.length, truncated=truncated)

    @property
    def seconds(self) -> float:
        return self.length / self.rate

    def part(self, start: float, stop: float) -> Recording:
        """From second ``start`` to ``stop``."""
        first, last = (min(max(0, round(time * self.rate)), self.length) for time in (start, stop))
        return replace(self, first=self.first + first, length=last - first)

    def read(self, start: int, count: int) -> np.ndarray:
        """(count, channels) float32 from sample ``start`` on; fewer at the end of the recording."""
        count = min(count, self.length - start)
        if count <= 0:
            return np.zeros((0, self.channels), np.float32)
        file = _file(self.path)
        part = file.read(self.first + start, count)
        if count - len(part) > file.slack * self.rate and self.truncated == "refuse":
            end = self.first + start + len(part)
            raise ValueError(f"the file ends at sample {end} of {file.length} (data.source.truncated)")
        return part


def _file(path: bytes) -> SoundStream:
    """The opened file. The last one stays open, because samples are read right after the header."""
    status = os.stat(path)
    return _opened(path, status.st_mtime_ns, status.st_size, os.getpid())  # forked processes share file offsets


@lru_cache(maxsize=1)
def _opened(path: bytes, *state: int) -> SoundStream:
    return open_sound(path)


atexit.register(_opened.cache_clear)  # at a later exit stage soundfile can no longer close it and warns


# --------------------------------------------------------------------------------------- is the file complete?
def _check_file(path: bytes, truncated: Truncated) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not an ordinary file")  # opening a pipe would block
    if not status.st_size:
        raise ValueError("empty file (0 bytes)")
    if truncated == "refuse" and (reason := truncation_reason(path, status.st_size)):
        raise ValueError(f"{reason} (data.source.truncated)")
