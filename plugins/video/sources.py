"""Sources of videos: video files and folders of frames, from a folder or a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from maemm import registry
from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import PartOf, Positive, PositiveInt
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.files import endings, existing, fingerprint
from maemm.data.lists import class_labels, find_files

from .decoding import FrameFolder, Video, VideoFile
from .decoding.backends import check_backend
from .decoding.video import IMAGES
from .decoding.watchdog import Decoder
from .lists import EXTENSIONS, Columns, Listed, hmdb51, read_videos, replacement_of

_LISTS = (".txt", ".csv", ".tsv")


def open_videos(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "video",
    backend: Literal["av", "decord", "torchcodec"] = "av",
    seconds: Positive | None = 30.0,
    partial: bool = False,
    frame_rate: Positive = 25.0,
    extensions: Sequence[str] | None = None,
    delimiter: str | None = None,
    columns: Columns | None = None,
    split: PositiveInt = 1,
    part: Literal["train", "test"] = "train",
) -> Source:
    """The source for ``data.root`` and ``data.list``; which kind it is follows from what is there.

    A folder is searched for videos or, if it has none, for folders of frames; if they are in subfolders of exactly one
    level, those are the classes. A list names paths and labels, or which frames to use; a folder as ``list`` holds
    HMDB51's splits. Raises :class:`MaemmError` if there is nothing to read.

    Options
        name: the modality that the videos are for
        backend: decoder: av, decord or torchcodec
        seconds: time limit for opening a file and for each decoding of frames; a decoder that exceeds it is killed and
            the file is unreadable; null: no limit, decode in the worker itself
        partial: read what there is of files that end too early; false: they are unreadable
        frame_rate: frames per second of folders of frames, unless they were packed with their times
        extensions: endings of the files to use from a folder; null: those of all known formats
        delimiter: between the path and the numbers in a list; null: a tab, a comma or blanks
        columns: meaning of the columns of a list; null: a label, or for two numbers what they look like
        split: number of HMDB51's split
        part: part of HMDB51's split
    """
    if not root and not list:
        raise MaemmError("no videos are given; set data.root to a folder or a video, or data.list to a list of paths")
    check_backend(backend)
    path = existing(root, "data.root") if root else None
    if list:
        if path is not None and not path.is_dir():
            raise MaemmError(f"data.root is not a folder ({root}); with data.list it is what the paths are relative to")
        list_path = existing(list, "data.list")
        if list_path.is_dir():
            listed = hmdb51(list_path, path, split, part)
        else:
            listed = read_videos(list_path, path, delimiter, columns)
    else:
        assert path is not None
        if path.is_dir():
            listed = _search(path, endings(extensions, EXTENSIONS))
        elif path.suffix.lower() in _LISTS:
            listed = read_videos(path, None, delimiter, columns)
        else:
            listed = Listed(path.parent, [path.name])
    return Videos(listed, Decoder(backend, seconds, partial), name=name, frame_rate=frame_rate)


def _search(folder: Path, suffixes: tuple[str, ...]) -> Listed:
    """Videos below a folder, or folders of frames below it, or the folder itself if it holds frames."""
    paths = find_files(folder, suffixes)
    if not paths:
        paths = sorted({os.path.dirname(path) for path in find_files(folder, IMAGES)})
        if paths == [""]:
            return Listed(folder.resolve().parent, [folder.resolve().name])
    if not paths:
        raise MaemmError(
            f"no video below the folder ({folder}); looked for files that end in {' '.join(suffixes)}, and for folders "
            f"of {' '.join(IMAGES)}"
        )
    return Listed(folder, paths, *class_labels(paths))


class Videos(files.Files):
    """A video per sample: a file, a folder of frames, or a part of one."""

    serves_any_file = True

    def __init__(self, listed: Listed, decoder: Decoder, *, name: str = "video", frame_rate: Positive = 25.0):
        super().__init__(listed.home, listed.paths, listed.labels, listed.classes, name=name)
        self.decoder, self.frame_rate = decoder, frame_rate
        self._parts = np.array(listed.parts, np.int64).reshape(-1, 2)

    def open(self, path: bytes, rng: Rng, part: tuple[int, int] = (0, -1)) -> Video:
        """The video at ``path``; its frames are decoded when the modality reads them."""
        path = replacement_of(path)
        if os.path.isdir(path):
            return FrameFolder(path, rng, part, self.frame_rate)
        return VideoFile(path, self.decoder, rng, part)

    def read(self, index: int, rng: Rng) -> Sample:
        first, count = self._parts[index].tolist() if len(self._parts) else (0, -1)
        video = self.open(os.path.join(self.folder, self.path(index)), rng, (first, count))
        return Sample({self.modality: video}, self.name(index), self.label(index))

    def paths(self, index: int) -> Mapping[str, Any] | None:
        return None if len(self._parts) else super().paths(index)

    def files(self) -> Iterator[bytes]:
        return (replacement_of(path) for path in super().files())

    def fingerprint(self) -> str:
        """Of the paths below the folder, the labels and the parts; moving the folder does not change it."""
        return fingerprint("videos", super().fingerprint(), self._parts)


class Mixed(Source):
    """A video and a random picture per sample, for models of both (OmniMAE); an epoch is one pass over the videos.

    A sample whose video or picture cannot be read is unreadable.
    """

    def __init__(self, videos: Source, images: Source, name: str = "image"):
        self.videos, self.images, self.modality, self.classes = videos, images, name, videos.classes

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        return self.videos.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        video = self.videos.read(index, rng)
        chosen = int(rng.floats("picture", 1)[0] * len(self.images))
        try:
            picture = self.images.read(chosen, rng.fold_in("picture"))
        except Exception as error:
            raise ValueError(f"its picture {self.images.name(chosen)} cannot be read: {error}") from error
        return Sample({**video.raw, self.modality: picture.raw[self.modality]}, video.id, video.label)

    def fingerprint(self) -> str:
        return fingerprint("mixed", self.videos.fingerprint(), self.images.fingerprint())


def open_mixed(
    root: str | None,
    list: str | None = None,
    *,
    images: str | None = None,
    videos: Annotated[dict[str, Any], PartOf("sources", default="video", besides=("name",))] | None = None,
) -> Mixed:
    """Videos of ``data.root`` and ``data.list``, each with a picture of another folder.

    Raises :class:`MaemmError` if either is missing.

    Options
        images: folder, list or array of pictures, as the image plugin reads them; required
        videos: options of the source of videos
    """
    clips = open_videos(root, list, **(videos or {}))
    if images is None:
        raise MaemmError("no pictures are given (data.source.images); set it to a folder, a list or an array")
    return Mixed(clips, registry.find("sources", "image")(images, None, name="image"))
