"""The video sample set: procedural objects that turn and move, as small mp4 files in one folder per shape."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt

from .._objects.objects import SHAPES, Object, make_objects
from .._objects.render import render
from .._objects.store import write_once
from .sources import open_videos

HOME = Path("runs/samples/video")  # below the working directory, beside the runs
COUNT = 120
PIXELS, FRAMES, RATE = 48, 16, 10
VERSION = 1  # increase it whenever a pixel changes, so that an old folder is refused


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` clips (16 frames of 48 x 48 at 10 fps) as ``root/SHAPE/0007.mp4``; a second call does nothing.

    The label is the folder's name; the number is the object's index, the same in every modality, and the first frame is
    its picture in the image sample set. ``.objects.json`` holds all parameters.
    """
    description = {
        "kind": "video",
        "version": VERSION,
        "count": count,
        "seed": seed,
        "pixels": PIXELS,
        "frames": FRAMES,
    }
    write_once(root, description, lambda folder: _fill(folder, count, seed))


def open_samples(root: str | None, list: str | None = None, *, name: str = "video") -> Source:
    """For recipes that run without data: the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary video source. Raises :class:`MaemmError` as that does.

    Options
        name: the modality that the videos are for
    """
    if not root and not list:
        write(HOME)
        root = str(HOME)
    return open_videos(root, list, name=name)


def write_video(
    path: Path, frames: np.ndarray, rate: int = RATE, *, group: int = 12, quality: int = 18, preset: str = "veryfast"
) -> None:
    """Write (T, H, W, 3) uint8 as H.264 in mp4, without B-frames, with a key frame every ``group`` frames."""
    import av

    options = {"crf": str(quality), "g": str(group), "bf": "0", "threads": "1", "preset": preset}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _fill(folder: Path, count: int, seed: int) -> None:
    objects = make_objects(count, seed)
    for shape in SHAPES:
        (folder / shape).mkdir()
    for thing in objects:
        write_video(folder / thing.shape / f"{thing.index:04d}.mp4", frames_of(thing))
    text = json.dumps([thing.record() for thing in objects])
    (folder / ".objects.json").write_text(text + "\n", encoding="utf-8")


def frames_of(thing: Object, frames: int = FRAMES, rate: int = RATE, pixels: int = PIXELS) -> np.ndarray:
    """(frames, pixels, pixels, 3) uint8: an object from time 0 on."""
    return np.stack([np.asarray(render(thing, pixels, number / rate)) for number in range(frames)])
