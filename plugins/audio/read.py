"""Sound files, read in parts: only what a sample needs is decoded.

libsndfile (through soundfile) reads WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF and more, by content, not by
name; other containers go through PyAV where it is installed. Values are float32 -1 .. 1, whatever the bit depth. MP3
has no index: seeking reads all frame headers up to the position (44 ms for 15 minutes).
"""

from __future__ import annotations

import atexit
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from maemm.contract.errors import MaemmError

EXTENSIONS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
    *(".w64", ".rf64", ".m4a", ".aac", ".wma", ".mka"),
)
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp")
MAX_MISSING_BYTES = 1024  # bytes that may be missing at the end of a WAV file: writers count their padding differently
_STREAMED = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # lengths written by programs that stream

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


def _file(path: bytes) -> _SoundFile | _Container:
    """The opened file. The last one stays open, because samples are read right after the header."""
    status = os.stat(path)
    return _opened(path, status.st_mtime_ns, status.st_size, os.getpid())  # forked processes share file offsets


@lru_cache(maxsize=1)
def _opened(path: bytes, *state: int) -> _SoundFile | _Container:
    soundfile = _soundfile()
    try:
        return _SoundFile(path)
    except soundfile.LibsndfileError as error:
        try:
            return _Container(path)
        except (MaemmError, ValueError) as other:
            reason = str(other) if isinstance(other, ValueError) else f"{error.error_string.rstrip('.')}; {other}"
            raise ValueError(reason) from None


atexit.register(_opened.cache_clear)  # at a later exit stage soundfile can no longer close it and warns


class _SoundFile:
    """Through libsndfile."""

    def __init__(self, path: bytes):
        self.file = _soundfile().SoundFile(path)
        self.rate, self.channels, self.length = self.file.samplerate, self.file.channels, self.file.frames
        self.slack = 0.1 if self.file.format == "MP3" else 0.0  # seconds: padding of the encoder

    def read(self, start: int, count: int) -> np.ndarray:
        if self.file.tell() != start:
            self.file.seek(start)
        return self.file.read(count, dtype="float32", always_2d=True)


class _Container:
    """Through PyAV: sound of MP4, Matroska, WMA..."""

    slack = 0.25  # seconds: lengths are rounded to the container's clock and to frames of the codec

    def __init__(self, path: bytes):
        av = _av()
        self.path = os.fsdecode(path)
        try:
            with av.open(self.path) as container:
                if not container.streams.audio:
                    kinds = [f"{s.type} {s.codec_context.name if s.codec_context else ''}" for s in container.streams]
                    raise ValueError(f"no sound (streams: {', '.join(map(str.strip, kinds)) or 'none'})")
                stream = container.streams.audio[0]
                self.rate, self.channels = stream.codec_context.sample_rate, stream.codec_context.channels
                seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
        except av.FFmpegError as error:
            raise ValueError(f"not a readable sound ({error.strerror or error})") from None
        self.length = round(float(seconds) * self.rate)
        if not self.length:
            self.length = sum(part.shape[1] for part in self._decoded(0))  # the container does not record it

    def read(self, start: int, count: int) -> np.ndarray:
        parts, have = [np.zeros((self.channels, 0), np.float32)], 0
        for part in self._decoded(start):
            parts.append(part)
            have += part.shape[1]
            if have >= count:
                break
        return np.concatenate(parts, 1).T[:count]

    def _decoded(self, start: int) -> Iterator[np.ndarray]:
        """(channels, n) float32 from sample ``start`` on, frame by frame."""
        av = _av()
        try:
            with av.open(self.path) as container:
                stream = container.streams.audio[0]
                if start:  # a little earlier: codecs need some frames to settle
                    container.seek(max(0, int(start / self.rate * 1e6) - 200_000))
                planar = av.AudioResampler(format="fltp")
                for frame in container.decode(stream):
                    position = round(float(frame.time or 0) * self.rate)
                    for resampled in planar.resample(frame):
                        samples = resampled.to_ndarray()[:, max(0, start - position) :]
                        position += resampled.samples
                        if samples.shape[1]:
                            yield samples
        except av.FFmpegError as error:
            raise ValueError(f"the sound cannot be decoded ({error.strerror or error})") from None


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise MaemmError(f"sound files need soundfile ({error}); run: pip install soundfile") from error
    return soundfile


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MaemmError("it may be a video container, which needs PyAV; run: pip install av") from error
    return av


# --------------------------------------------------------------------------------------- is the file complete?
def _check_file(path: bytes, truncated: Truncated) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not an ordinary file")  # opening a pipe would block
    if not status.st_size:
        raise ValueError("empty file (0 bytes)")
    if truncated == "refuse" and (reason := truncation_reason(path, status.st_size)):
        raise ValueError(f"{reason} (data.source.truncated)")


def truncation_reason(path: bytes, size: int) -> str | None:
    """Why the file is truncated, which libsndfile does not report; None: no sign of it."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return _wav_cut(file, size)
        if head[:4] == b"OggS":
            file.seek(max(0, size - 65536 - 307))  # the longest page
            return _ogg_cut(file.read())
    return None


def _wav_cut(file: Any, size: int) -> str | None:
    position = 12
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            missing = 0 if length in _STREAMED else position + 8 + length - size
            return (
                f"the file is cut off: {missing} of {length} bytes of sound are missing"
                if missing > MAX_MISSING_BYTES
                else None
            )
        position += 8 + length + length % 2
    return None


def _ogg_cut(tail: bytes) -> str | None:
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "the file is cut off inside a page"
    return None if page[5] & 4 else "the file is cut off: its last page is not marked as the end"
