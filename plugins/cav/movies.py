"""Frames and sound of video files, decoded in one pass and aligned in time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegativeInt, Positive, PositiveInt, Repeats
from maemm.contract.rng import Rng
from maemm.data.files import Files, endings, existing, fingerprint
from maemm.data.lists import class_labels, find_files, read_list

from ..audio.read import VIDEO_EXTENSIONS
from ..video.decoding.watchdog import call
from .decode import Clip, Look, decode, extent_of, last_step

_MARGIN = 0.05  # seconds of sound after the last frame, for the last window of a filter bank


# --------------------------------------------------------------------------------------------------- the source
@dataclass(frozen=True)
class Names:
    """Names of the modalities, None where one is not read. The text is part of fingerprints."""

    image: str | None
    video: str | None
    audio: str | None


class Movies(Files):
    """A video file per sample, of which an interval of time is read."""

    def __init__(
        self,
        listed: tuple[Path, list[str], Any, Any],
        names: Names,
        look: Look,
        *,
        seconds: float | None,
        fps: float | None,
        at: float | None,
        tta_views: int,
        cache: Path | None,
        decode_seconds: float | None = 60.0,
    ):
        home, paths, labels, classes = listed
        super().__init__(home, paths, labels, classes, name=names.video or names.image or names.audio or "")
        self.names, self.look, self.seconds, self.fps, self.at, self.cache = names, look, seconds, fps, at, cache
        self.tta_views, self.limit = tta_views, decode_seconds

    def open(self, path: bytes, rng: Rng) -> dict[str, Any]:
        """{modality: what its ``load`` expects}; without the modalities that the file has no track for."""
        at = rng.floats("frame", 1)[0] if self.at is None else self.at
        return self._opened(os.fsdecode(path), rng.floats("time", 1)[0], at)

    def _opened(self, file: str, position: float, at: float) -> dict[str, Any]:
        """``position`` in [0, 1): of the interval in the file; ``at``: of the image in the interval."""
        if self.cache is not None:
            clip = _cached(self.cache, file, self.look, self.limit)
            start = clip.first + position * max(0.0, clip.length - (self.seconds or clip.length))
        elif self.seconds is None:
            clip = call(decode, file, self.look, seconds=self.limit)
            start = clip.first
        else:
            begin, length, seekable = call(extent_of, file, seconds=self.limit)
            start = begin + position * max(0.0, length - self.seconds)
            stop = start + self.seconds + _MARGIN
            clip = call(decode, file, self.look, start, stop, seekable, seconds=self.limit)
        raw: dict[str, Any] = {}
        stop = start + self.seconds if self.seconds else float("inf")
        if clip.times is not None and clip.pictures is not None:
            shown = self._shown(clip.times, start)
            # Sound begins with the first frame, if not at 0: some containers let frames begin a little before.
            start = max(float(clip.times[shown[0]]), min(clip.begin, 0.0))
            stop = start + self.seconds if self.seconds else float("inf")
            if self.names.video:
                raw[self.names.video] = clip.pictures[shown]
            if self.names.image:
                raw[self.names.image] = clip.pictures[shown[min(int(at * len(shown)), len(shown) - 1)]]
        if clip.sound is not None and self.names.audio:
            end = clip.begin + len(clip.sound) / clip.rate
            raw[self.names.audio] = clip.heard(start, min(stop + _MARGIN, end))
        if not raw:
            raise ValueError("has no track for any of these modalities")
        return raw

    def _shown(self, times: np.ndarray, start: float) -> np.ndarray:
        """Indices of the frames of the interval that begins at ``start``; the last one is repeated at the end."""
        first = max(int(np.searchsorted(times, start + 1e-6, side="right")) - 1, 0)
        stop = times[first] + self.seconds if self.seconds else times[-1] + last_step(times)
        if self.fps is None:
            return np.arange(first, max(int(np.searchsorted(times, stop - 1e-6)), first + 1))
        moments = times[first] + np.arange(max(1, round((stop - times[first]) * self.fps))) / self.fps
        return np.clip(np.searchsorted(times, moments + 1e-6, side="right") - 1, first, len(times) - 1)

    def read(self, index: int, rng: Rng) -> Sample:
        raw = self.open(os.path.join(self.folder, self.path(index)), rng)
        return Sample(raw, self.name(index), self.label(index))

    def tta_view(self, index: int, number: int) -> Sample:
        """The interval in the middle of the file; the image is the middle of part ``number`` of ``tta_views`` of it."""
        file = os.fsdecode(os.path.join(self.folder, self.path(index)))
        return Sample(self._opened(file, 0.5, (number + 0.5) / self.tta_views), self.name(index), self.label(index))

    def fingerprint(self) -> str:
        return fingerprint("movies", super().fingerprint(), self.names, self.look, self.seconds, self.fps, self.at)


def open_movies(
    root: str | None,
    list: str | None = None,
    *,
    image: str | None = "image",
    video: str | None = None,
    audio: str | None = "audio",
    seconds: Positive | None = None,
    fps: Positive | None = None,
    at: Fraction | None = None,
    tta_views: Repeats = 1,
    box: tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt] | None = None,
    shrink: PositiveInt = 1,
    cache: str | None = None,
    decode_seconds: Positive | None = 60.0,
    extensions: Sequence[str] | None = None,
) -> Source:
    """Videos with their sound, of a folder or a list of paths: images, clips and sound of the same moments.

    A file without a track gives a sample without that modality (``data.missing``). Raises :class:`MaemmError` where
    there is nothing to read.

    Options
        image: name of the modality that gets one frame of each interval; null: none
        video: name of the modality that gets all frames of the interval; null: none
        audio: name of the modality of the sounds; null: none
        seconds: length of the interval that is read of each file, a random one in every epoch; null: all
        fps: frames per second of clips, by their time stamps; null: those of the file
        at: which frame of the interval, as a fraction of it (0.5: the middle); null: a random one
        tta_views: evenly spaced frames of each file that evaluation averages over (maemm retrieve --views)
        box: top, left, height and width in pixels of the part of each frame that is used; null: all
        shrink: factor by which frames are made smaller, by averaging
        cache: folder for decoded files, for short files that are read often; null: decode each time
        decode_seconds: time limit for decoding an interval; a decoder that exceeds it is killed and the file is
            unreadable; null: no limit, decode in the worker itself
        extensions: endings of the files to read from a folder; null: those of all known kinds
    """
    names = [name for name in (image, video, audio) if name]
    if not names or len(set(names)) < len(names):
        raise MaemmError("a video gives one modality or more, each another name (data.source.image, video, audio)")
    look = Look(None if box is None else (box[0], box[1], box[2], box[3]), shrink)
    folder = None if cache is None else Path(cache).expanduser()
    listed = _listed(root, list, endings(extensions, VIDEO_EXTENSIONS))
    return Movies(
        listed,
        Names(image, video, audio),
        look,
        seconds=seconds,
        fps=fps,
        at=at,
        tta_views=tta_views,
        cache=folder,
        decode_seconds=decode_seconds,
    )


def _listed(root: str | None, list: str | None, suffixes: tuple[str, ...]) -> tuple[Path, list[str], Any, Any]:
    if not root and not list:
        raise MaemmError("no videos are given; set data.root to a folder or a video, or data.list to a list of paths")
    folder = existing(root, "data.root") if root else None
    if list:
        return read_list(existing(list, "data.list"), folder, suffixes)
    assert folder is not None
    if not folder.is_dir():
        return folder.parent, [folder.name], None, None
    paths = find_files(folder, suffixes)
    if not paths:
        raise MaemmError(f"no video below the folder ({folder}); looked for files that end in {' '.join(suffixes)}")
    labels, classes = class_labels(paths)
    return folder, paths, labels, classes


# ---------------------------------------------------------------------------------------------------- the cache
def _cached(folder: Path, path: str, look: Look, limit: float | None) -> Clip:
    """The whole file, decoded once; a file that has changed is decoded again."""
    status = os.stat(path)
    key = f"{os.path.abspath(path)}\x1f{status.st_size}\x1f{status.st_mtime_ns}\x1f{look}".encode(
        "utf-8", "surrogateescape"
    )
    target = folder / f"{hashlib.blake2b(key, digest_size=12).hexdigest()}.safetensors"
    try:
        values = load_file(target)
        rate, begin = values.pop("clock")
        return Clip(**values, rate=int(rate), begin=float(begin))
    except (OSError, SafetensorError, KeyError, TypeError):
        pass  # not there yet, or incomplete: decode
    clip = call(decode, path, look, seconds=limit)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(clip.arrays(), temporary)
    os.replace(temporary, target)
    return clip
