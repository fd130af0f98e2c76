"""Open sound files: libsndfile where it knows the length, PyAV for everything else.

libsndfile reads WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF and more, by content, not by name. Where a file does
not record how long it is, or is several streams one behind the other, libsndfile guesses or stops after the first:
there packets are counted, through PyAV, and PyAV decodes where the guess was wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from maemm.contract.errors import MaemmError

from .promises import MOST_SAMPLES, chained, length_is_recorded

_EXACT = {"mov", "mp4", "matroska", "webm", "asf", "avi", "flv", "wav"}  # containers that record how long they are
_MOST_DAMAGED = 16  # packets of a raw stream that need not be sound: tags between two streams
_LATE = 0.5  # seconds from which on a recording is said to begin later than at 0
_SETTLE = 0.2  # seconds that are decoded before the requested ones: codecs need some frames to settle


class SoundStream(Protocol):
    """An open file: ``length`` in samples, and by how many seconds it may be wrong at the end (``slack``)."""

    rate: int
    channels: int
    length: int
    slack: float

    def read(self, start: int, count: int) -> np.ndarray:
        """(count, channels) float32 -1 .. 1 from sample ``start`` on; fewer at the end."""
        ...


def open_sound(path: bytes) -> SoundStream:
    """Open a file by its content. Raises ValueError or OSError with the reason where it is no readable sound."""
    soundfile = _soundfile()
    try:
        file = _SoundFile(path)
    except soundfile.LibsndfileError as error:
        try:
            return _Container(path)
        except (MaemmError, ValueError) as other:
            reason = str(other) if isinstance(other, ValueError) else f"{error.error_string.rstrip('.')}; {other}"
            raise ValueError(reason) from None
    return file if file.length_is_sure(path) else _counted(file, path)


def _counted(file: _SoundFile, path: bytes) -> SoundStream:
    """``file`` where its guess is right, else the file through PyAV."""
    unknown = not 0 < file.length < MOST_SAMPLES
    try:
        other = _Container(path, count=True)
    except ValueError:
        if file.length >= MOST_SAMPLES:
            raise
        return file  # such as a header without sound
    return file if not unknown and abs(other.length - file.length) <= file.slack * file.rate else other


class _SoundFile:
    """Through libsndfile."""

    def __init__(self, path: bytes):
        self.file = _soundfile().SoundFile(path)
        self.rate, self.channels, self.length = self.file.samplerate, self.file.channels, self.file.frames
        self.slack = 0.1 if self.file.format == "MP3" else 0.0  # seconds: padding of the encoder
        self._position = 0  # in a file that cannot seek

    def length_is_sure(self, path: bytes) -> bool:
        """Whether the length was recorded, not guessed, and is that of the whole file."""
        if not 0 < self.length < MOST_SAMPLES:
            return False
        if self.file.format == "MP3":
            return length_is_recorded(path)
        return not (self.file.format == "OGG" and chained(path))

    def read(self, start: int, count: int) -> np.ndarray:
        if not self.file.seekable():  # GSM 6.10 is read from its start
            self._go_to(start)
        elif self.file.tell() != start:
            self.file.seek(start)
        part = self.file.read(count, dtype="float32", always_2d=True)
        self._position = start + len(part)
        return part

    def _go_to(self, start: int) -> None:
        if start < self._position:
            self.file = _soundfile().SoundFile(self.file.name)
            self._position = 0
        while self._position < start:
            skipped = len(self.file.read(min(start - self._position, 2**16), dtype="float32"))
            if not skipped:
                return
            self._position += skipped


class _Container:
    """Through PyAV: sound of MP4, Matroska, WMA..., and whatever libsndfile guesses the length of.

    ``count``: do not believe the header, count the samples of all packets. Raises ValueError with the reason.
    """

    slack = 0.25  # seconds: lengths are rounded to the container's clock and to frames of the codec

    def __init__(self, path: bytes, count: bool = False):
        av = _av()
        av.logging.set_level(None)
        self.path = os.fsdecode(path)
        self.in_order = True  # whether time stamps lead to a sample; otherwise samples are counted from the start
        try:
            with av.open(self.path) as container:
                if not container.streams.audio:
                    kinds = [f"{s.type} {s.codec_context.name if s.codec_context else ''}" for s in container.streams]
                    raise ValueError(f"no sound (streams: {', '.join(map(str.strip, kinds)) or 'none'})")
                stream = container.streams.audio[0]
                if stream.codec_context is None:
                    raise ValueError("its sound is of a codec that FFmpeg cannot decode here")
                self.rate, self.channels = stream.codec_context.sample_rate, stream.codec_context.channels
                self.origin = float((stream.start_time or 0) * stream.time_base)
                seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
                if self.origin > _LATE and not stream.duration and "matroska" in container.format.name:
                    seconds -= self.origin  # it records when the last frame ends
                exact = bool({*container.format.name.split(",")} & _EXACT)
                self.length = round(float(seconds) * self.rate)
                if count or not exact or not self.length:
                    self.length = self._count(container, stream)
        except (av.FFmpegError, EOFError) as error:
            raise ValueError(f"not a readable sound ({getattr(error, 'strerror', None) or error})") from None
        if not self.length:
            self.length = sum(part.shape[1] for part in self._decoded(0))  # packets without durations

    def read(self, start: int, count: int) -> np.ndarray:
        parts, have = [np.zeros((self.channels, 0), np.float32)], 0
        for part in self._decoded(start):
            parts.append(part)
            have += part.shape[1]
            if have >= count:
                break
        return np.concatenate(parts, 1).T[:count]

    def _count(self, container: Any, stream: Any) -> int:
        """Samples of all packets that are heard, and whether their time stamps go on without a step back."""
        ticks, end = 0, None
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard or not packet.duration:
                continue
            ticks += packet.duration
            if packet.pts is not None and end is not None:
                # Half a packet: stamps are rounded, and the first packets of a codec overlap.
                self.in_order = self.in_order and packet.pts > end - packet.duration
            end = None if packet.pts is None else packet.pts + packet.duration
        if not self.in_order:  # streams one behind the other: only decoding tells what each codec adds and leaves out
            return sum(part.shape[1] for part in self._decoded(0))
        return round(float(ticks * stream.time_base) * self.rate)

    def _decoded(self, start: int) -> Iterator[np.ndarray]:
        """(channels, n) float32 from sample ``start`` on, frame by frame."""
        av = _av()
        try:
            with av.open(self.path) as container:
                stream = container.streams.audio[0]
                if start and self.in_order:
                    container.seek(max(0, int((self.origin + start / self.rate - _SETTLE) * 1e6)))
                planar = _Planar(self.rate, self.channels)
                position = 0
                for frame in self._frames(container, stream):
                    if self.in_order and frame.time is not None:
                        position = round((frame.time - self.origin) * self.rate)
                    for resampled in planar.resample(frame):
                        samples = resampled.to_ndarray()[:, max(0, start - position) :]
                        position += resampled.samples
                        if samples.shape[1]:
                            yield samples
        except (av.FFmpegError, EOFError) as error:
            raise ValueError(f"the sound cannot be decoded ({getattr(error, 'strerror', None) or error})") from None

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames; a few packets that are no sound are left out of raw streams."""
        av = _av()
        tolerated = 0 if {*container.format.name.split(",")} & _EXACT else _MOST_DAMAGED
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                tolerated -= 1
                if tolerated < 0:
                    raise
                continue
            yield from frames


class _Planar:
    """Frames -> planar floats with the rate and the channels of the file, whatever a later stream of it has."""

    def __init__(self, rate: int, channels: int):
        self.rate, self.channels = rate, channels
        self._seen: tuple[Any, ...] | None = None
        self._resampler: Any = None

    def resample(self, frame: Any) -> list[Any]:
        """Raises ValueError where the number of channels changes."""
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != self._seen:
            if frame.layout.nb_channels != self.channels:
                raise ValueError(f"its sound changes from {self.channels} to {frame.layout.nb_channels} channels")
            self._seen = kind
            self._resampler = _av().AudioResampler(format="fltp", rate=self.rate)
        return self._resampler.resample(frame)


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
