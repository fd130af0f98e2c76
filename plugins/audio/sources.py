"""Sources of sound: files of a folder or a list, whole or as sliding windows of long recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import Positive
from maemm.contract.rng import Rng
from maemm.data.files import Files, endings, existing, fingerprint
from maemm.data.lists import class_labels, find_files, read_list

from .load import Wave
from .manifests import Listed, read_json, read_manifest, speech_commands
from .read import EXTENSIONS, VIDEO_EXTENSIONS, Recording, Truncated

_LISTS = (".json", ".csv", ".tsv", ".txt")
_COLUMNS = ("wav", "audio", "audio_path", "sound", "clip")  # of paths in a list, besides the usual ones
Split = Literal["all", "train", "validation", "testing"]


def open_audio(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "audio",
    extensions: Sequence[str] | None = None,
    labels: str | None = None,
    split: Split = "all",
    slide: Positive | None = None,
    hop: Positive | None = None,
    truncated: Truncated = "refuse",
    memory: bool = False,
) -> Source:
    """The source for ``data.root`` and ``data.list``, by what they are.

    A folder is searched recursively; where all files lie in folders of exactly one level, those are the classes. A list
    (``data.list``, or a .json, .csv, .tsv or .txt file as root) is a table of paths and labels, JSON of AST and
    CAV-MAE, or a fairseq manifest. Any other file as root is one recording. Long recordings are never read whole: a
    sample is a part (the modality's ``crop``), or with ``slide`` every window is a sample. Raises
    :class:`MaemmError` where there is nothing to read.

    Options
        name: the modality that the sounds are for
        extensions: endings of the files to take from a folder; null: those of sound files
        labels: label file of a JSON list (index,mid,display_name); null: the labels that occur
        split: all, or a part of a Speech Commands tree: train, validation or testing
        slide: seconds of a sliding window, each a sample; null: a recording is a sample
        hop: seconds from window to window; null: slide
        truncated: refuse or read files that are shorter than their header says
        memory: decode each recording once and keep it, in every worker: for small data sets and many epochs
    """
    listed = _listed(root, list, endings(extensions, EXTENSIONS), labels, split)
    if memory and slide is not None:
        raise MaemmError("windows of long recordings are read on demand (data.source.slide); leave memory out")
    clips = Clips(listed, name=name, truncated=truncated, memory=memory)
    return clips if slide is None else Windows(clips, slide, hop or slide)


def _listed(root: str | None, list: str | None, suffixes: tuple[str, ...], labels: str | None, split: Split) -> Listed:
    if not root and not list:
        raise MaemmError("no sounds are given; set data.root to a folder or a file, or data.list to a list of paths")
    folder = existing(root, "data.root") if root else None
    if list:
        if folder is not None and not folder.is_dir():
            raise MaemmError(f"data.root is no folder ({root}); with data.list it is what the paths are relative to")
        return _read_list(existing(list, "data.list"), folder, labels)
    assert folder is not None
    if folder.is_dir():
        paths = speech_commands(folder, find_files(folder, suffixes), split)
        if not paths:
            raise MaemmError(f"no sound below the folder ({folder}); looked for files that end in {' '.join(suffixes)}")
        return Listed(folder, paths, *class_labels(paths))
    if folder.suffix.lower() in _LISTS:
        return _read_list(folder, None, labels)
    if folder.suffix.lower() in (*suffixes, *VIDEO_EXTENSIONS):
        return Listed(folder.parent, [folder.name])
    raise MaemmError(
        f"data.root is a file of no known kind ({root}); give a sound, a folder of sounds, or a list "
        f"({' '.join(_LISTS)})"
    )


def _read_list(path: Path, root: Path | None, labels: str | None) -> Listed:
    if path.is_dir():
        raise MaemmError(f"data.list is a folder ({path}); give it as data.root")
    if path.suffix.lower() == ".json":
        return read_json(path, root, None if labels is None else existing(labels, "data.source.labels"))
    if path.suffix.lower() == ".tsv" and (manifest := read_manifest(path, root)) is not None:
        return manifest
    return Listed(*read_list(path, root, (*EXTENSIONS, *VIDEO_EXTENSIONS), _COLUMNS))


class Clips(Files):
    """A recording per file."""

    def __init__(self, listed: Listed, *, name: str = "audio", truncated: Truncated = "refuse", memory: bool = False):
        labels = listed.labels if listed.multilabel is None else [tuple(row) for row in listed.multilabel]
        super().__init__(listed.home, listed.paths, labels, listed.classes, name=name)
        self.truncated, self._unknown = truncated, listed.unknown
        self._decoded: dict[bytes, Wave] | None = {} if memory else None
        self.serves_any_file = not memory

    def open(self, path: bytes, rng: Rng) -> Recording | Wave:
        """The recording; with ``memory`` its samples, decoded once."""
        if self._decoded is None:
            return Recording.open(path, self.truncated)
        if path not in self._decoded:
            whole = Recording.open(path, self.truncated)
            self._decoded[path] = Wave(whole.read(0, whole.length), whole.rate)
        return self._decoded[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": None if self._decoded is None else {}}  # each process decodes its own

    def read(self, index: int, rng: Rng) -> Sample:
        self.check_label(index)
        return super().read(index, rng)

    def check_label(self, index: int) -> None:
        """Raises ValueError where a label of the sample is not in the label file."""
        if index in self._unknown:
            raise ValueError(f"its label {self._unknown[index]!r} is not in the label file (data.source.labels)")


class Windows(Source):
    """Windows of ``seconds`` every ``hop`` of the recordings of ``clips``; the last one of each ends at its end.

    Opening reads all headers. A recording that cannot be opened counts as one window, which is then unreadable.
    """

    def __init__(self, clips: Clips, seconds: float, hop: float):
        self.clips, self.seconds, self.hop = clips, seconds, hop
        self.classes, self.multilabel = clips.classes, clips.multilabel
        counts = [self._count(index) for index in range(len(clips))]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def _count(self, clip: int) -> int:
        """Windows of a recording."""
        try:
            length = self._open(clip).seconds
        except Exception:  # of any kind: the reason is reported when the window is read
            return 1
        return 1 + max(0, int(np.ceil((length - self.seconds) / self.hop - 1e-9)))

    def _open(self, clip: int) -> Recording:
        return Recording.open(os.path.join(self.clips.folder, self.clips.path(clip)), self.clips.truncated)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def position(self, index: int) -> tuple[int, float]:
        """(number of the recording, second at which the window starts)."""
        clip = int(np.searchsorted(self._ends, index, side="right"))
        return clip, (index - (int(self._ends[clip - 1]) if clip else 0)) * self.hop

    def name(self, index: int) -> str:
        clip, start = self.position(index)
        return f"{self.clips.name(clip)}@{start:g}s"

    def read(self, index: int, rng: Rng) -> Sample:
        clip, start = self.position(index)
        self.clips.check_label(clip)
        whole = self._open(clip)
        start = max(0.0, min(start, whole.seconds - self.seconds))
        part = whole.part(start, start + self.seconds)
        return Sample({self.clips.modality: part}, self.name(index), self.clips.label(clip))

    def label(self, index: int) -> Label | None:
        return self.clips.label(self.position(index)[0])

    def fingerprint(self) -> str:
        return fingerprint("windows", self.clips.fingerprint(), self.seconds, self.hop, self._ends)
