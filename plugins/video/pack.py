"""Pack videos so that they decode fast: small, and as frames that depend on few others or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from maemm.contract.errors import MaemmError
from maemm.contract.options import Positive, PositiveInt
from maemm.data.pack import Packer

from .decoding import VideoFile
from .decoding.backends import check_backend
from .decoding.video import TIMES
from .decoding.watchdog import Decoder
from .lists import EXTENSIONS

_BLOCK = 64  # frames decoded at a time
_TICKS = {"mpeg4": 60_000, "h264": 90_000}  # of the packed file's clock, per second; MPEG-4 counts to 65,535
_ENCODERS = {"mpeg4": "mpeg4", "h264": "libx264"}
_QUALITY = {"mpeg4": 4, "h264": 21, "frames": 90}
_RANGE = {"mpeg4": (1, 31), "h264": (0, 51), "frames": (1, 100)}  # of the quantiser, of CRF, of JPEG's quality


class Videos(Packer):
    """Rewrite videos to be small and fast to decode. Lists of the original names work on the packed folder.

    Options
        kind: video: an mp4 file without B-frames; frames: a folder of JPEG files for each video, the fastest to read;
            both keep the time stamps
        codec: for kind video: mpeg4, or h264, which takes half as long again to decode and has smaller files
        side: pixels of the short side; smaller videos are not enlarged; null: unchanged
        group: for kind video: frames from one key frame to the next; 1: only key frames, the fastest
        every: keep every so many-th frame; divide a recipe's stride by it
        quality: MPEG-4's quantiser (1 .. 31, lower is better), H.264's CRF (0 .. 51, lower is better), or JPEG's
            quality (1 .. 100); null: 4, 21 or 90
        backend: decoder: av, decord or torchcodec
        seconds: time limit for decoding 64 frames, beyond which the video is unreadable; null: no limit
    """

    extensions = EXTENSIONS

    def __init__(
        self,
        *,
        kind: Literal["frames", "video"] = "video",
        codec: Literal["mpeg4", "h264"] = "mpeg4",
        side: Annotated[int, Ge(2)] | None = 256,
        group: PositiveInt = 4,
        every: PositiveInt = 1,
        quality: Annotated[int, Ge(0), Le(100)] | None = None,
        backend: Literal["av", "decord", "torchcodec"] = "av",
        seconds: Positive | None = 60.0,
    ):
        check_backend(backend)
        form = codec if kind == "video" else kind
        low, high = _RANGE[form]
        self.quality = _QUALITY[form] if quality is None else quality
        if not low <= self.quality <= high:
            raise MaemmError(f"quality is {quality} (quality=); give {low} to {high} for {form}")
        self.kind, self.codec, self.side, self.group, self.every = kind, codec, side, group, every
        self.decoder = Decoder(backend, seconds)

    def about(self) -> dict[str, Any]:
        """The options that determine the content of the files."""
        group = {"group": self.group} if self.kind == "video" else {}
        # Packs were of H.264 before there was a choice: theirs continue with codec=h264.
        codec = {"codec": self.codec} if self.kind == "video" and self.codec != "h264" else {}
        return {"kind": self.kind, **codec, "side": self.side, **group, "every": self.every, "quality": self.quality}

    def place(self, path: str) -> str:
        """``a/b.avi`` -> ``a/b.mp4``, or the folder ``a/b`` of frames."""
        return os.path.splitext(path)[0] + (".mp4" if self.kind == "video" else "")

    def write(self, path: Path, new: Path) -> None:
        """Pack one video. Raises ValueError or OSError if it cannot be read to its end."""
        video = VideoFile(str(path), self.decoder)
        frames, times = self._frames(video), video.times[:: self.every]
        if self.kind == "frames":
            _write_frames(new, frames, times, self.quality)
        else:
            _write_video(new, frames, times, self.codec, self.group, self.quality)

    def _frames(self, video: VideoFile) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8 to pack, resized."""
        index = list(range(0, len(video), self.every))
        for start in range(0, len(index), _BLOCK):
            for frame in video.frames_at(index[start : start + _BLOCK]):
                yield self._resized(frame)

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        """The short side becomes ``side``; for kind video, both sides even."""
        from PIL import Image

        height, width = frame.shape[:2]
        factor = 1.0 if self.side is None else min(1.0, self.side / min(height, width))
        sides = [max(1, round(length * factor)) for length in (height, width)]
        if self.kind == "video":
            sides = [max(2, length + length % 2) for length in sides]
        if sides == [height, width]:
            return np.ascontiguousarray(frame)
        picture = Image.fromarray(np.ascontiguousarray(frame)).resize(sides[::-1], Image.Resampling.BICUBIC)
        return np.asarray(picture)


def _write_video(
    path: Path, frames: Iterator[np.ndarray], times: np.ndarray, codec: str, group: int, quality: int
) -> None:
    """``times``: the seconds at which frames appear, stored as time stamps."""
    import av

    ticks = _TICKS[codec]
    stamps = np.maximum.accumulate(np.round((times - times[0]) * ticks).astype(np.int64) - np.arange(len(times)))
    stamps += np.arange(len(times))  # strictly ascending despite rounding
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-3) if len(times) > 1 else 25

    options = {"g": str(group), "bf": "0", "threads": "1"}
    if codec == "h264":
        options |= {"crf": str(quality), "preset": "veryfast", "tune": "fastdecode"}
    else:
        options |= {"qmin": str(quality), "qmax": str(quality)}
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for pixels, stamp in zip(frames, stamps.tolist(), strict=True):
            if stream is None:
                stream = container.add_stream(
                    _ENCODERS[codec], rate=Fraction(rate).limit_denominator(1001), options=options
                )
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
                stream.codec_context.time_base = Fraction(1, ticks)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, ticks)
            container.mux(stream.encode(frame))
        assert stream is not None  # a video has a frame
        container.mux(stream.encode())


def _write_frames(path: Path, frames: Iterator[np.ndarray], times: np.ndarray, quality: int) -> None:
    """A folder of JPEG files, and the seconds at which they appear."""
    from PIL import Image

    path.mkdir()
    np.save(path / TIMES, times)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{index:06d}.jpg", quality=quality)
