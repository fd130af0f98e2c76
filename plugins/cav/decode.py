"""One pass over a video file: pictures and sound of the same moments."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError

from ..audio.load import Wave

_OPTIONS = {"protocol_whitelist": "file"}  # a play list posing as a video must not open addresses
_MOST_BYTES = 2**31  # of the pictures, or the sound, of one clip: a file may claim any size
_LATE = 0.1  # seconds by which sound may begin behind the pictures: codecs differ in their first samples


@dataclass(frozen=True)
class Look:
    """What becomes of each picture: a box is cut out, then blocks of pixels become one."""

    box: tuple[int, int, int, int] | None = None  # top, left, height, width
    shrink: int = 1

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same, smaller. Raises ValueError where the box does not fit."""
        if self.box is not None:
            top, left, height, width = self.box
            if top + height > pixels.shape[0] or left + width > pixels.shape[1]:
                size = f"{pixels.shape[0]} x {pixels.shape[1]}"
                raise ValueError(f"the box {list(self.box)} does not fit into pictures of {size} (data.source.box)")
            pixels = pixels[top : top + height, left : left + width]
        if self.shrink == 1:
            return np.ascontiguousarray(pixels)
        height, width = (side // self.shrink for side in pixels.shape[:2])
        if not height or not width:
            raise ValueError(f"pictures of {pixels.shape[0]} x {pixels.shape[1]} are too small (data.source.shrink)")
        from PIL import Image

        whole = np.ascontiguousarray(pixels[: height * self.shrink, : width * self.shrink])
        return np.asarray(Image.fromarray(whole).reduce(self.shrink))


@dataclass(frozen=True)
class Clip:
    """Decoded pictures and sound, or one of them where the file has no other. Times are seconds of the file."""

    times: np.ndarray | None = None  # (n,) float64, when the pictures appear
    pictures: np.ndarray | None = None  # (n, H, W, 3) uint8
    sound: np.ndarray | None = None  # (samples, channels) float32
    rate: int = 0
    begin: float = 0.0  # second of the first sample

    def heard(self, start: float, stop: float) -> Wave:
        """The sound between two moments. Raises ValueError where there is none, or none at the beginning."""
        first = max(0, round((start - self.begin) * self.rate))
        part = self.sound[first : max(first, round((stop - self.begin) * self.rate))]
        if not len(part):
            raise ValueError(f"its sound ends before second {start:.3g}, where the pictures begin")
        if self.begin - start > _LATE:
            raise ValueError(f"its sound begins {self.begin - start:.2g} s after the pictures")
        return Wave(part, self.rate)


# ------------------------------------------------------------------------------------------------- decoding
def seconds_of(path: str) -> float:
    """Length of a file as its header tells it; 0 where it does not."""
    with _opened(path) as container:
        return max(0.0, (container.duration or 0) / 1e6)


def decode(path: str, look: Look, start: float = 0.0, stop: float = float("inf")) -> Clip:
    """Pictures shown and sound heard between two moments, in one pass. Raises ValueError for broken files."""
    import av

    with _opened(path) as container:
        streams = [*_streams(container.streams.video)[:1], *_streams(container.streams.audio)[:1]]
        if not streams:
            raise ValueError("has neither picture nor sound")
        pictures, sounds = _Pictures(look, start, stop), _Sounds(start, stop)
        try:
            if start > 0:
                container.seek(max(0, int((start - 0.2) * 1e6)))  # the key frame before
            waiting = {one.index for one in streams}
            for packet in container.demux(streams):
                if packet.stream.index not in waiting:
                    continue
                taker = pictures if packet.stream.type == "video" else sounds
                if any(taker.accept(frame) for frame in packet.decode()):
                    waiting.discard(packet.stream.index)
                if not waiting:
                    break
        except av.error.FFmpegError as error:
            raise ValueError(f"cannot be decoded after {pictures.count} pictures ({error.strerror or error})") from None
        kinds = {one.type: one for one in streams}
        if "video" in kinds and stop == float("inf") and pictures.count < kinds["video"].frames:
            raise ValueError(f"ends too early: {pictures.count} of {kinds['video'].frames} pictures can be read")
        return Clip(*pictures.found("video" in kinds), *sounds.found("audio" in kinds))


def _opened(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MaemmError("videos with sound need PyAV; run: pip install av") from error
    av.logging.set_level(None)
    if not os.path.getsize(path):
        raise ValueError("empty file (0 bytes)")
    try:
        return av.open(path, options=_OPTIONS)
    except av.error.FFmpegError as error:
        raise ValueError(f"not a readable video ({error.strerror or error})") from None


def _streams(some: Any) -> list[Any]:
    found = [one for one in some if one.codec_context is not None]
    for one in found:
        one.codec_context.thread_count = 1
    return found


class _Pictures:
    """Takes frames of video as they are decoded."""

    def __init__(self, look: Look, start: float, stop: float):
        self.look, self.start, self.stop, self.bytes, self.count = look, start, stop, 0, 0
        self.times: list[float] = []
        self.kept: list[np.ndarray] = []

    def accept(self, frame: Any) -> bool:
        """Whether this was the last one that is wanted."""
        at = float(frame.time or 0.0)
        if at >= self.stop:
            return True
        self.count += 1
        if at < self.start and self.kept:  # only the last one before the start is still on show then
            self.times, self.kept = [], []
        pixels = frame.to_ndarray(format="rgb24")
        turns = frame.rotation // 90 % 4
        pixels = self.look.apply(np.rot90(pixels, turns) if turns else pixels)
        self.bytes += pixels.nbytes
        if self.bytes > _MOST_BYTES:
            raise ValueError(f"its pictures are more than {_MOST_BYTES >> 30} GiB; set data.source.seconds or shrink")
        if self.kept and pixels.shape != self.kept[0].shape:
            raise ValueError(f"its pictures change from {self.kept[0].shape[:2]} to {pixels.shape[:2]} pixels")
        self.times.append(at)
        self.kept.append(pixels)
        return False

    def found(self, there: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
        if there and not self.kept:
            raise ValueError("has a track of pictures, and no picture in it can be read")
        return (np.array(self.times), np.stack(self.kept)) if there else (None, None)


class _Sounds:
    """Takes frames of sound as they are decoded."""

    def __init__(self, start: float, stop: float):
        self.start, self.stop = start, stop
        self.parts: list[np.ndarray] = []
        self.rate, self.begin, self.bytes, self.planar = 0, 0.0, 0, None

    def accept(self, frame: Any) -> bool:
        import av

        at = float(frame.time or 0.0)
        if at >= self.stop:
            return True
        if at + frame.samples / frame.sample_rate <= self.start:
            return False
        if not self.parts:
            self.rate, self.begin, self.planar = frame.sample_rate, at, av.AudioResampler(format="fltp")
        for one in self.planar.resample(frame):
            self.parts.append(one.to_ndarray())
            self.bytes += self.parts[-1].nbytes
        if self.bytes > _MOST_BYTES:
            raise ValueError(f"its sound is more than {_MOST_BYTES >> 30} GiB; set data.source.seconds")
        return False

    def found(self, there: bool) -> tuple[np.ndarray | None, int, float]:
        if not there:
            return None, 0, 0.0
        if not self.parts:
            return np.zeros((0, 1), np.float32), 1, 0.0
        return np.concatenate(self.parts, 1).T, self.rate, self.begin
