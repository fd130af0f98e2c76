"""Videos in a form that decodes fast: small, as frames that need no others, or few."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.data.pack import Packer

from .decoding import VideoFile
from .decoding.backends import check_backend
from .decoding.video import TIMES
from .decoding.watchdog import Decoder
from .lists import EXTENSIONS

_BLOCK = 64  # frames decoded at a time
_TICKS = 90_000  # of the packed file's clock in a second
_QUALITY = {"video": 21, "frames": 90}
_BEST = {"video": (0, 51), "frames": (1, 100)}  # ranges of CRF and of JPEG's quality


class Videos(Packer):
    """Videos rewritten small and quick to decode. Lists of the originals' names work on the packed folder.

    Options
        kind: video: H.264 in mp4 without B-frames; frames: a folder of JPEG pictures for each video, the fastest, in
            many files; both keep when frames are shown
        side: pixels of the short side; smaller videos are not enlarged; null: as it is
        group: of kind video: frames from one key frame to the next; 1: every frame is one, the fastest
        every: of the frames, one in so many is kept, so that a recipe's stride becomes stride / every
        quality: of kind video H.264's CRF (0 .. 51, less is better), of kind frames JPEG's (1 .. 100); null: 21 and 90
        backend: what decodes: av, decord or torchcodec
        seconds: how long decoding 64 frames may take; then the video is unreadable; null: no limit
    """

    extensions = EXTENSIONS

    def __init__(
        self,
        *,
        kind: Literal["frames", "video"] = "video",
        side: int | None = 256,
        group: int = 4,
        every: int = 1,
        quality: int | None = None,
        backend: Literal["av", "decord", "torchcodec"] = "av",
        seconds: float | None = 60.0,
    ):
        for name, value, least in (
            ("side", side, 2),
            ("group", group, 1),
            ("every", every, 1),
            ("seconds", seconds, 0),
        ):
            if value is not None and (value < least or not value):
                raise MaemmError(f"{name} is {value}; give {max(least, 1)} or more ({name}=...)")
        check_backend(backend)
        low, high = _BEST[kind]
        self.quality = _QUALITY[kind] if quality is None else quality
        if not low <= self.quality <= high:
            raise MaemmError(f"quality is {quality} (quality=); give {low} to {high} for kind={kind}")
        self.kind, self.side, self.group, self.every = kind, side, group, every
        self.decoder = Decoder(backend, seconds)

    def about(self) -> dict[str, Any]:
        """The options that shape the files."""
        group = {"group": self.group} if self.kind == "video" else {}
        return {"kind": self.kind, "side": self.side, **group, "every": self.every, "quality": self.quality}

    def place(self, path: str) -> str:
        """``a/b.avi`` -> ``a/b.mp4``, or the folder ``a/b`` of frames."""
        return os.path.splitext(path)[0] + (".mp4" if self.kind == "video" else "")

    def write(self, path: Path, new: Path) -> None:
        """One video. Raises ValueError or OSError where it cannot be read to its end."""
        video = VideoFile(str(path), self.decoder)
        frames, times = self._frames(video), video.times[:: self.every]
        if self.kind == "frames":
            _write_frames(new, frames, times, self.quality)
        else:
            _write_video(new, frames, times, self.group, self.quality)

    def _frames(self, video: VideoFile) -> Iterator[np.ndarray]:
        """(H, W, 3) frames in the size they are packed in."""
        index = list(range(0, len(video), self.every))
        for start in range(0, len(index), _BLOCK):
            for frame in video.frames_at(index[start : start + _BLOCK]):
                yield self._shrunk(frame)

    def _shrunk(self, frame: np.ndarray) -> np.ndarray:
        """The short side to ``side``; for kind video, both sides even."""
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


def _write_video(path: Path, frames: Iterator[np.ndarray], times: np.ndarray, group: int, quality: int) -> None:
    """``times``: the seconds at which frames appear, which the file keeps."""
    import av

    stamps = np.maximum.accumulate(np.round((times - times[0]) * _TICKS).astype(np.int64) - np.arange(len(times)))
    stamps += np.arange(len(times))  # ascending, whatever the rounding
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-3) if len(times) > 1 else 25

    options = {"crf": str(quality), "g": str(group), "bf": "0", "threads": "1", "preset": "veryfast",
               "tune": "fastdecode"}  # fmt: skip
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for pixels, stamp in zip(frames, stamps.tolist(), strict=True):
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=options)
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
                stream.codec_context.time_base = Fraction(1, _TICKS)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_frames(path: Path, frames: Iterator[np.ndarray], times: np.ndarray, quality: int) -> None:
    """Pictures, and the seconds at which they appear."""
    from PIL import Image

    path.mkdir()
    np.save(path / TIMES, times)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number:06d}.jpg", quality=quality)
