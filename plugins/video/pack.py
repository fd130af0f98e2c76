"""Videos in a form that decodes fast: small, with many key frames and no B-frames, or as JPEG frames.

Each file is written beside its place and renamed when it is whole, so an interrupted run leaves no half a file, and
the same call again goes on with those that are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from maemm.data.bad_samples import BadSample, reason_of
from maemm.data.lists import find_files
from maemm.errors import MaemmError

from .decoding import VideoFile
from .decoding.watchdog import Decoder
from .lists import EXTENSIONS

_BLOCK = 64  # frames decoded at a time
_NEW = ".new"  # ends the name of what is not whole yet


@dataclass(frozen=True)
class Form:
    """What videos are packed into.

    ``kind``: "video": H.264 in mp4, ``group`` frames between key frames; "frames": a folder of JPEG pictures each.
    ``side``: pixels of the short side, null: as it is; smaller videos are not enlarged. ``every``: of the frames, one
    in this many is kept, so that a recipe's stride becomes stride / every.
    """

    kind: Literal["video", "frames"] = "video"
    side: int | None = 256
    group: int = 8
    every: int = 1
    quality: int = 21  # of H.264 (CRF: less is better); JPEG is written with quality 90


@dataclass
class Packed:
    """What :func:`pack_folder` did."""

    written: int = 0
    there: int = 0  # already, from an earlier run
    bad: list[BadSample] = field(default_factory=list)


def pack_folder(
    source: Path,
    target: Path,
    form: Form | None = None,
    *,
    decoder: Decoder | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Packed:
    """Rewrite every video below ``source`` to the same place below ``target``; unreadable ones are listed, not written.

    ``on_progress(done, total)`` is called after each. Raises :class:`MaemmError` where there is nothing to pack, where
    the two folders lie in each other, and where ``target`` cannot be written.
    """
    source, target, form = Path(source), Path(target), form or Form()
    if source.resolve() == target.resolve() or source.resolve() in target.resolve().parents:
        raise MaemmError(f"the packed videos would lie among those to pack ({target}); choose another folder")
    paths = find_files(source, EXTENSIONS)
    if not paths:
        raise MaemmError(f"no video below the folder ({source}); looked for files that end in {' '.join(EXTENSIONS)}")
    done = Packed()
    for number, path in enumerate(paths):
        place = target / (os.path.splitext(path)[0] + (".mp4" if form.kind == "video" else ""))
        if place.exists():
            done.there += 1
        else:
            try:
                pack_one(source / path, place, form, decoder or Decoder())
                done.written += 1
            except (ValueError, OSError, ImportError) as error:
                if isinstance(error, OSError) and error.errno in _OURS:
                    raise MaemmError(
                        f"cannot write the packed videos ({target}: {error.strerror}); free space"
                    ) from error
                done.bad.append(BadSample(number, path, reason_of(error)))
        if on_progress is not None:
            on_progress(number + 1, len(paths))
    return done


_OURS = (28, 30, 122)  # no space left, read-only, over quota: not the video's fault


def pack_one(path: Path, place: Path, form: Form, decoder: Decoder) -> None:
    """One video, whole or not at all. Raises ValueError or OSError."""
    video = VideoFile(str(path), decoder)
    beside = place.with_name(place.name + _NEW)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        write = _write_video if form.kind == "video" else _write_frames
        write(beside, _frames(video, form), len(video) / form.every / max(video.seconds, 1e-6), form)
        os.replace(beside, place)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def _frames(video: VideoFile, form: Form) -> Iterator[np.ndarray]:
    """(H, W, 3) frames in the size they are packed in."""
    index = list(range(0, len(video), form.every))
    for start in range(0, len(index), _BLOCK):
        for frame in video.take(index[start : start + _BLOCK]):
            yield _shrunk(frame, form)


def _shrunk(frame: np.ndarray, form: Form) -> np.ndarray:
    """The short side to ``form.side``; for video, both sides even."""
    from PIL import Image

    height, width = frame.shape[:2]
    factor = 1.0 if form.side is None else min(1.0, form.side / min(height, width))
    sides = [max(1, round(side * factor)) for side in (height, width)]
    if form.kind == "video":
        sides = [max(2, side + side % 2) for side in sides]
    if sides == [height, width]:
        return np.ascontiguousarray(frame)
    picture = Image.fromarray(np.ascontiguousarray(frame)).resize(sides[::-1], Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _write_video(path: Path, frames: Iterator[np.ndarray], rate: float, form: Form) -> None:
    import av

    options = {"crf": str(form.quality), "g": str(form.group), "bf": "0", "threads": "1", "preset": "veryfast",
               "tune": "fastdecode"}  # fmt: skip
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=options)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_frames(path: Path, frames: Iterator[np.ndarray], rate: float, form: Form) -> None:
    from PIL import Image

    path.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number:06d}.jpg", quality=90)
