"""Images with their sound: JSON lists with stored frames (CAV-MAE), and frames decoded from videos."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegativeInt, PartOf, PositiveInt
from maemm.contract.rng import Rng
from maemm.data.files import existing, fingerprint

from .._images.load import read_image
from ..audio.manifests import read_json
from ..audio.sources import Clips
from ..video.sources import open_videos


class FramesOfVideos(Source):
    """One frame of each video: at the fraction ``at`` of its length, or with None a random one in every epoch."""

    def __init__(self, videos: Source, name: str, at: float | None):
        self.videos, self.modality, self.at, self.classes = videos, name, at, videos.classes

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        return self.videos.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        sample = self.videos.read(index, rng)
        (video,) = sample.raw.values()
        if not len(video):
            raise ValueError("has no frames")
        fraction = rng.floats("frame", 1)[0] if self.at is None else self.at
        (frame,) = video.frames_at([min(int(fraction * len(video)), len(video) - 1)])
        return Sample({self.modality: frame}, sample.id, sample.label)

    def fingerprint(self) -> str:
        return fingerprint("frames", self.videos.fingerprint(), self.at)


def open_frames(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "image",
    at: Fraction | None = None,
    videos: Annotated[dict[str, Any], PartOf("sources", default="video", besides=("name",))] | None = None,
) -> Source:
    """Frames of videos as images; ``data.root`` and ``data.list`` are those of the source of videos.

    Options
        name: the modality that the images are for
        at: which frame, as a fraction of the video (0.5: the middle); null: a random one in every epoch
        videos: options of the source of videos
    """
    return FramesOfVideos(open_videos(root, list, **(videos or {})), name, at)


class Clipped(Source):
    """A sound and one of its stored frames: ``FOLDER/frame_3/ID.jpg``."""

    def __init__(
        self, sounds: Clips, stores: list[tuple[str, str]], frames: int, frame: int | None, names: dict[str, str]
    ):
        self.sounds, self.stores, self.frames, self.frame, self.names = sounds, stores, frames, frame, names
        self.classes, self.multilabel = sounds.classes, sounds.multilabel
        self.tta_views = frames if frame is None else 1  # a classifier averages over all frames with the same sound

    def __len__(self) -> int:
        return len(self.sounds)

    def name(self, index: int) -> str:
        return self.stores[index][1]

    def read(self, index: int, rng: Rng) -> Sample:
        number = int(rng.floats("frame", 1)[0] * self.frames) if self.frame is None else self.frame
        return self._sample(index, number, rng)

    def tta_view(self, index: int, number: int) -> Sample:
        return self._sample(index, number if self.frame is None else self.frame, Rng(("view", index)))

    def _sample(self, index: int, number: int, rng: Rng) -> Sample:
        sound = self.sounds.read(index, rng)
        folder, video = self.stores[index]
        path = os.path.join(folder, f"frame_{number}", f"{video}.jpg")
        try:
            image = read_image(os.fsencode(path), 255)
        except (OSError, ValueError) as error:
            raise ValueError(f"its frame {number} cannot be read: {error}") from error
        raw = {self.names["audio"]: sound.raw[self.sounds.modality], self.names["image"]: image}
        return Sample(raw, video, sound.label)

    def label(self, index: int) -> Label | None:
        return self.sounds.label(index)

    def files(self) -> Iterator[str | bytes | os.PathLike[str]]:
        yield from self.sounds.files()
        for folder, video in self.stores:
            for number in range(self.frames):
                yield os.path.join(folder, f"frame_{number}", f"{video}.jpg")

    def fingerprint(self) -> str:
        return fingerprint("clips", self.sounds.fingerprint(), self.stores, self.frames, self.frame)


def open_clips(
    root: str | None,
    list: str | None = None,
    *,
    frames: PositiveInt = 10,
    frame: NonNegativeInt | None = None,
    labels: str | None = None,
    audio: str = "audio",
    image: str = "image",
) -> Source:
    """CAV-MAE's lists: ``{"data": [{"video_id", "wav", "video_path", "labels"}, ...]}`` with stored frames.

    Relative paths are relative to ``data.root``, or to the list. A missing frame makes the sample unreadable; it
    is not replaced by another frame. Raises :class:`MaemmError` for a file that is no such list.

    Options
        frames: stored frames of each clip
        frame: the one to read (5: the middle of ten); null: a random one in every epoch
        labels: label file (index,mid,display_name); null: the labels that occur
        audio: name of the modality of the sounds
        image: name of the modality of the images
    """
    if not list:
        raise MaemmError("no clips are given; set data.list to a JSON list of wav, video_path and video_id")
    if frame is not None and frame >= frames:
        raise MaemmError(f"there is no frame {frame} of {frames} (data.source.frame); give 0 to {frames - 1}")
    file = existing(list, "data.list")
    home = existing(root, "data.root") if root else None
    listed = read_json(file, home, None if labels is None else existing(labels, "data.source.labels"))
    sounds, stores = Clips(listed, name=audio), _stores(file, listed.home)
    return Clipped(sounds, stores, frames, frame, {"audio": audio, "image": image})


def _stores(file: Path, home: Path) -> list[tuple[str, str]]:
    """(folder of the frames, video id) of each entry."""
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    rows = content["data"] if isinstance(content, dict) else content
    stores = []
    for number, row in enumerate(rows):
        for key in ("video_id", "video_path"):
            if not isinstance(row.get(key), str) or not row[key]:
                raise MaemmError(f"entry {number} of the list has no {key!r} ({file}); add where its frames are")
        stores.append((os.path.join(home, row["video_path"]), row["video_id"]))
    return stores
