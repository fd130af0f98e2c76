"""Decoding of a video file in one pass: frames and sound of the same moments.

It runs in the decoding process of ``..video.decoding``, so nothing here imports torch before a sound is taken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maemm.contract.errors import MaemmError

from ..video.decoding.packets import OPTIONS, Timeline, stored_packets

if TYPE_CHECKING:
    from ..audio.load import Wave

_MOST_BYTES = 2**31  # of the frames, or of the sound, of one clip: headers may claim any size
_RECORDED = {"mp4", "mov", "matroska", "webm", "avi"}  # containers whose header has the length
_EXACT = {"mp4", "mov"}  # and those that have the exact number of frames
_SHORT = 0.1  # fraction of frames by which the headers of others may be wrong
_LONGER = 0.5  # seconds by which a file may be longer than its frames: sound goes on a little
_LATE = 0.1  # seconds by which sound may begin after the frames: codecs differ in their first samples


@dataclass(frozen=True)
class Look:
    """How each frame is cropped and shrunk. The text is part of fingerprints and of names in the cache."""

    box: tuple[int, int, int, int] | None = None  # top, left, height, width
    shrink: int = 1

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w, 3) uint8. Raises ValueError where the frame is too small."""
        if self.box is not None:
            top, left, height, width = self.box
            if top + height > pixels.shape[0] or left + width > pixels.shape[1]:
                size = f"{pixels.shape[0]} x {pixels.shape[1]}"
                raise ValueError(f"the box {list(self.box)} does not fit into frames of {size} (data.source.box)")
            pixels = pixels[top : top + height, left : left + width]
        if self.shrink == 1:
            return np.ascontiguousarray(pixels)
        height, width = (side // self.shrink for side in pixels.shape[:2])
        if not height or not width:
            raise ValueError(f"frames of {pixels.shape[0]} x {pixels.shape[1]} are too small (data.source.shrink)")
        from PIL import Image

        whole = np.ascontiguousarray(pixels[: height * self.shrink, : width * self.shrink])
        return np.asarray(Image.fromarray(whole).reduce(self.shrink))


@dataclass(frozen=True)
class Clip:
    """Decoded frames and sound, or one of the two; times are in seconds of the file."""

    times: np.ndarray | None = None  # (n,) float64, when the frames are shown
    pictures: np.ndarray | None = None  # (n, H, W, 3) uint8
    sound: np.ndarray | None = None  # (samples, channels) float32
    rate: int = 0
    begin: float = 0.0  # second of the first sample

    @property
    def length(self) -> float:
        """Seconds, from the frames or else from the sound."""
        if self.times is not None:
            return float(self.times[-1] - self.times[0]) + last_step(self.times)
        return 0.0 if self.sound is None else len(self.sound) / self.rate

    @property
    def first(self) -> float:
        """Second at which it begins."""
        return self.begin if self.times is None else float(self.times[0])

    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache stores."""
        arrays = {"times": self.times, "pictures": self.pictures, "sound": self.sound}
        stored = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        return {**stored, "clock": np.array([self.rate, self.begin])}

    def heard(self, start: float, stop: float) -> Wave:
        """The sound from ``start`` to ``stop``. Raises ValueError where there is none, or it begins too late."""
        from ..audio.load import Wave

        assert self.sound is not None
        first = max(0, round((start - self.begin) * self.rate))
        part = self.sound[first : max(first, round((stop - self.begin) * self.rate))]
        if not len(part):
            raise ValueError(f"its sound ends before second {start:.3g}, where the frames begin")
        if self.begin - start > _LATE:
            raise ValueError(f"its sound begins {self.begin - start:.2g} s after the frames")
        return Wave(part, self.rate)


def last_step(times: np.ndarray) -> float:
    """Seconds for which the last frame is shown: as long as the one before."""
    return float(times[-1] - times[-2]) if len(times) > 1 else 0.0


# ------------------------------------------------------------------------------------------------- decoding
class Extent(NamedTuple):
    """When a file begins and how long it is, in seconds; whether a moment of it can be found by its time stamp."""

    begin: float
    seconds: float
    seekable: bool = True


def extent_of(path: str) -> Extent:
    """From the header where it has the length, else from all packets."""
    with _opened(path) as container:
        streams = [*_streams(container.streams.video)[:1], *_streams(container.streams.audio)[:1]]
        if not streams:
            raise ValueError("has neither frames nor sound")
        if not {*container.format.name.split(",")} & _RECORDED or not container.duration:
            return _extent_of_packets(container, streams)
        first = streams[0]
        begin, seconds = float((first.start_time or 0) * first.time_base), container.duration / 1e6
        if begin > _LONGER and "matroska" in container.format.name:  # it records when the last frame ends
            seconds -= begin
        if first.type == "video" and first.duration:
            own = float(first.duration * first.time_base)
            seconds = own if seconds - own > _LONGER else seconds
        return Extent(begin, seconds)


def _extent_of_packets(container: Any, streams: list[Any]) -> Extent:
    import av

    timeline, end = Timeline(), Fraction(0)
    begin: dict[int, Fraction] = {}  # of each stream
    try:
        for packet in timeline.moved(container.demux(streams)):
            if packet.size and packet.pts is not None and not packet.is_discard:
                time = packet.pts * packet.time_base
                begin[packet.stream.index] = min(time, begin.get(packet.stream.index, time))
                end = max(end, time + (packet.duration or 0) * packet.time_base)
    except (av.error.FFmpegError, EOFError):
        pass  # what there is so far counts
    if not begin:
        raise ValueError("nothing in it can be read")
    start = begin.get(streams[0].index, min(begin.values()))
    return Extent(float(start), max(0.0, float(end - start)), not timeline.broken)


def decode(
    path: str, look: Look, start: float = -float("inf"), stop: float = float("inf"), seekable: bool = True
) -> Clip:
    """Frames and sound from second ``start`` to ``stop``, in one pass; with a ``start`` that is finite it seeks.

    Raises ValueError for broken files.
    """
    import av

    with _opened(path) as container:
        streams = [*_streams(container.streams.video)[:1], *_streams(container.streams.audio)[:1]]
        if not streams:
            raise ValueError("has neither frames nor sound")
        frames, sounds = _Frames(look, start, stop), _Sounds(start, stop)
        stored = shown = 0  # packets of frames
        try:
            begin = (container.start_time or 0) / 1e6
            if seekable and start > begin and start > -float("inf"):
                container.seek(int(max(begin, start - 0.2) * 1e6))  # the key frame before
            unfinished = {stream.index for stream in streams}
            for packet in Timeline().moved(container.demux(streams)):
                if packet.stream.index not in unfinished:
                    continue
                if packet.stream.type == "video" and packet.size:
                    stored, shown = stored + 1, shown + (not packet.is_discard)
                collector = frames if packet.stream.type == "video" else sounds
                if any(collector.add(frame) for frame in packet.decode()):
                    unfinished.discard(packet.stream.index)
                if not unfinished:
                    break
        except av.error.FFmpegError as error:
            raise ValueError(f"cannot be decoded after {frames.count} frames ({error.strerror or error})") from None
        by_type = {stream.type: stream for stream in streams}
        if "video" in by_type and start == -float("inf") and stop == float("inf"):
            exact = bool({*container.format.name.split(",")} & _EXACT)
            _check_count(path, by_type["video"].frames, stored, shown, frames.count, exact)
        times, pictures = frames.result() if "video" in by_type else (None, None)
        sound, rate, begin = sounds.result() if "audio" in by_type else (None, 0, 0.0)
        return Clip(times, pictures, sound, rate, begin)


def _check_count(path: str, declared: int, stored: int, shown: int, decoded: int, exact: bool) -> None:
    """Compare frames with what the header declares. Raises ValueError where there are fewer.

    Edit lists leave frames out (``shown`` of ``stored`` packets are not), and some packets do not even arrive.
    """
    tolerance = 0 if exact else _SHORT * declared
    if stored < declared - tolerance:
        stored = stored_packets(path)
    if stored < declared - tolerance or (declared and decoded < shown - tolerance):
        raise ValueError(f"ends too early: {min(decoded, stored)} of {declared} frames can be read")


def _opened(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MaemmError("videos with sound need PyAV; run: pip install av") from error
    av.logging.set_level(None)
    if not os.path.getsize(path):
        raise ValueError("empty file (0 bytes)")
    try:
        return av.open(path, options=OPTIONS)
    except av.error.FFmpegError as error:
        raise ValueError(f"not a readable video ({error.strerror or error})") from None


def _streams(candidates: Any) -> list[Any]:
    """Those that have a decoder, set to one thread."""
    streams = [stream for stream in candidates if stream.codec_context is not None]
    for stream in streams:
        stream.codec_context.thread_count = 1
    return streams


class _Frames:
    """Collects video frames as they are decoded."""

    def __init__(self, look: Look, start: float, stop: float):
        self.look, self.start, self.stop, self.bytes, self.count = look, start, stop, 0, 0
        self.times: list[float] = []
        self.frames: list[np.ndarray] = []

    def add(self, frame: Any) -> bool:
        """Add a frame if it is in the interval; True once the interval is over."""
        time = float(frame.time or 0.0)
        if time >= self.stop:
            return True
        self.count += 1
        if time < self.start and self.frames:  # of the frames before the start only the last is still shown then
            self.times, self.frames = [], []
        pixels = frame.to_ndarray(format="rgb24")
        turns = frame.rotation // 90 % 4
        pixels = self.look.apply(np.rot90(pixels, turns) if turns else pixels)
        self.bytes += pixels.nbytes
        if self.bytes > _MOST_BYTES:
            raise ValueError(f"its frames are more than {_MOST_BYTES >> 30} GiB; set data.source.seconds or shrink")
        if self.frames and pixels.shape != self.frames[0].shape:
            raise ValueError(f"its frames change from {self.frames[0].shape[:2]} to {pixels.shape[:2]} pixels")
        self.times.append(time)
        self.frames.append(pixels)
        return False

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) and frames (n, H, W, 3). Raises ValueError where there are none."""
        if not self.frames:
            raise ValueError("has a video track, and no frame in it can be read")
        return np.array(self.times), np.stack(self.frames)


class _Sounds:
    """Collects sound as it is decoded."""

    def __init__(self, start: float, stop: float):
        self.start, self.stop = start, stop
        self.parts: list[np.ndarray] = []
        self.rate, self.begin, self.bytes = 0, 0.0, 0
        self.planar: Any = None  # the resampler to planar floats

    def add(self, frame: Any) -> bool:
        """Add a frame if it is in the interval; True once the interval is over."""
        import av

        time = float(frame.time or 0.0)
        if time >= self.stop:
            return True
        if time + frame.samples / frame.sample_rate <= self.start:
            return False
        if not self.parts:
            self.rate, self.begin, self.planar = frame.sample_rate, time, av.AudioResampler(format="fltp")
        for converted in self.planar.resample(frame):
            self.parts.append(converted.to_ndarray())
            self.bytes += self.parts[-1].nbytes
        if self.bytes > _MOST_BYTES:
            raise ValueError(f"its sound is more than {_MOST_BYTES >> 30} GiB; set data.source.seconds")
        return False

    def result(self) -> tuple[np.ndarray, int, float]:
        """Sound (samples, channels), its rate and the second at which it begins."""
        if not self.parts:
            return np.zeros((0, 1), np.float32), 1, 0.0
        return np.concatenate(self.parts, 1).T, self.rate, self.begin
