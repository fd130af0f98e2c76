"""Sources of maps: files of one kind, parallel folders of several, arrays with named channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import PartOf
from maemm.contract.rng import Rng
from maemm.data.arrays import LABELS, open_array_file, open_arrays
from maemm.data.files import existing, fingerprint, whole_labels
from maemm.data.labels import label_at
from maemm.data.lists import class_labels, find_files
from maemm.data.paired import open_paired

from .read import ENDINGS, channels_last, read_depth, read_labels, read_map

_READ_HERE = ("name", "root", "list")  # keys of a part that are no options of it


def open_map(root: str | None, list: str | None = None, *, name: str = "map") -> Source:
    """Maps of any channels: a folder or a list of pictures, EXR and .npy files, or one .npy or .npz file of many.

    Options
        name: the modality that the maps are for
    """
    return open_arrays(root, list, name, read=read_map, endings=ENDINGS)


def open_depth(root: str | None, list: str | None = None, *, name: str = "depth") -> Source:
    """Depth: a folder or a list of 16-bit PNG, TIFF, EXR and .npy files, or one .npy or .npz file of many.

    Options
        name: the modality that the maps are for
    """
    return open_arrays(root, list, name, read=read_depth, endings=ENDINGS)


def open_label_map(root: str | None, list: str | None = None, *, name: str = "label_map") -> Source:
    """Label maps: a folder or a list of PNG files (of palettes their indices) and .npy files, or one file of many.

    Options
        name: the modality that the maps are for
    """
    return open_arrays(root, list, name, read=read_labels, endings=ENDINGS)


# ------------------------------------------------------------------------------------------------- parallel folders
class CoRegistered(Source):
    """Samples of several sources whose pictures and maps show the same pixels: they have one size.

    ``sizes``: what to do where maps have other sizes than the first one, see :func:`open_maps`.
    """

    def __init__(self, inner: Source, names: list[str], sizes: str):
        self.inner, self.names, self.sizes = inner, names, sizes
        self.classes, self.multilabel = inner.classes, inner.multilabel

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def label(self, index: int) -> Label | None:
        return self.inner.label(index)

    def read(self, index: int, rng: Rng) -> Sample:
        sample = self.inner.read(index, rng)
        raw = {name: channels_last(sample.raw[name]) for name in self.names if name in sample.raw}
        first = next(iter(raw))
        size = raw[first].shape[:2]
        for name, values in raw.items():
            if values.shape[:2] == size:
                continue
            if self.sizes == "refuse":
                (height, width), (have_h, have_w) = size, values.shape[:2]
                raise ValueError(
                    f"{name} is {have_h} x {have_w}, {first} is {height} x {width}; maps of one sample have one size, "
                    "or set data.source.sizes: resize"
                )
            raw[name] = nearest(values, size)
        return Sample(raw, sample.id, sample.label, sample.sides)

    def files(self) -> Iterator[str | bytes | os.PathLike[str]]:
        yield from self.inner.files()

    def fingerprint(self) -> str:
        return fingerprint("maps", self.inner.fingerprint(), self.sizes)


def nearest(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(H, W, C) -> (*size, C): the nearest value of each pixel."""
    rows, columns = (
        np.minimum(((np.arange(want) + 0.5) * have / want).astype(int), have - 1)
        for want, have in zip(size, values.shape, strict=False)
    )
    return np.ascontiguousarray(values[rows][:, columns])


def open_maps(
    root: str | None,
    list: str | None = None,
    *,
    parts: Annotated[dict[str, Annotated[dict[str, Any], PartOf("sources", besides=_READ_HERE)]], MinLen(1)],
    missing: Literal["refuse", "skip", "allow"] = "refuse",
    by: Literal["path", "stem"] = "path",
    sizes: Literal["refuse", "resize"] = "refuse",
) -> Source:
    """Parallel folders of pictures and their maps: ``rgb/7.jpg``, ``depth/7.png`` and ``semseg/7.png`` below
    ``data.root`` are one sample of ``parts: {rgb: {type: image}, depth: {}, semseg: {type: label_map}}``.

    Raises :class:`MaemmError` where a part cannot be opened, where names are not unique, and, with ``missing``
    "refuse", where a part lacks samples that another has.

    Options
        parts: {modality: {type (default: the modality), root (default: data.root/modality), list, options}}
        missing: names that not every part has: refuse: an error; skip: leave these samples out; allow: samples without
            that modality, which data.missing must allow too
        by: match by path: below the root, without the ending; stem: the file's name alone, without the ending
        sizes: maps that are not as large as the first one of their sample: refuse: the sample is unreadable; resize: to
            the nearest values
    """
    specs = {name: dict(spec or {}) for name, spec in parts.items()}
    if len(specs) > 1:
        inner = open_paired(root, list, parts=specs, missing=missing, by=by)
        return CoRegistered(inner, [*specs], sizes)
    raise MaemmError("maps has a single part (data.source.parts); add another, or use its own source")


# ----------------------------------------------------------------------------------------------------- named channels
class NamedChannels(Source):
    """Samples whose channels have names, of which each modality takes some: of one file of many, or files of one each.

    ``channels``: {modality: names}. ``names``: of the channels of a .npy file, in order.
    """

    def __init__(self, root: Path, channels: dict[str, list[str]], names: list[str] | None):
        self.root, self.channels, self.names = root, channels, names
        self._labels: np.ndarray | None = None
        self._paths: list[str] | None = None
        if root.is_dir():
            self._paths = find_files(root, (".npy", ".npz"))
            if not self._paths:
                raise MaemmError(f"no file below the folder ends in .npy or .npz ({root}); check data.root")
            labels, classes = class_labels(self._paths)
            self.classes = classes
            self._labels = None if labels is None else np.asarray(labels)
            self._count = len(self._paths)
        else:
            self._open()

    def _open(self) -> None:
        """Map or read the one file of all samples."""
        try:
            with open_array_file(self.root) as stored:
                if isinstance(stored, np.ndarray):
                    self._whole: Any = stored
                    count = len(stored) if stored.ndim == 4 else 0
                else:
                    wanted = {name for of in self.channels.values() for name in of}
                    self._whole = {name: stored[name] for name in stored.files if name in wanted}
                    labels = next((stored[key] for key in LABELS if key in stored.files and key not in wanted), None)
                    counts = {len(values) for values in self._whole.values()}
                    count = counts.pop() if len(counts) == 1 else 0
                    self._labels = whole_labels(labels, count, self.root) if count else None
        except (OSError, ValueError) as error:
            raise MaemmError(f"cannot read the arrays ({self.root}: {error}); save plain numbers with numpy") from error
        if not count:
            raise MaemmError(
                f"the file holds no samples of named channels ({self.root}); store (samples, channels, height, width), "
                "or in a .npz file an array (samples, height, width) for each name in data.source.channels"
            )
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"{self.root.name}#{index}" if self._paths is None else self._paths[index]

    def label(self, index: int) -> Label | None:
        return label_at(self._labels, index)

    def read(self, index: int, rng: Rng) -> Sample:
        if self._paths is None:
            whole = self._whole
            stored = whole[index] if isinstance(whole, np.ndarray) else {name: x[index] for name, x in whole.items()}
        else:
            with open_array_file(self.root / self._paths[index], mmap=False) as opened:
                stored = opened if isinstance(opened, np.ndarray) else {name: opened[name] for name in opened.files}
        by_name = self._by_name(stored) if isinstance(stored, np.ndarray) else stored
        raw = {}
        for modality, names in self.channels.items():
            absent = [name for name in names if name not in by_name]
            if len(absent) == len(names):
                continue
            if absent:
                raise ValueError(f"has no {absent[0]}, which {modality} takes (it has {', '.join(by_name)})")
            raw[modality] = np.concatenate([channels_last(np.asarray(by_name[name])) for name in names], -1)
        if not raw:
            raise ValueError(f"has none of the channels of {', '.join(self.channels)} (it has {', '.join(by_name)})")
        return Sample(raw, self.name(index), self.label(index))

    def _by_name(self, values: np.ndarray) -> dict[str, np.ndarray]:
        if self.names is None:
            raise ValueError("an array has no names of its channels; give data.source.names, or store .npz files")
        if values.ndim != 3 or len(self.names) not in (values.shape[0], values.shape[-1]):
            raise ValueError(
                f"has shape {values.shape}, which are not the {len(self.names)} channels of data.source.names"
            )
        if values.shape[0] != len(self.names) or (
            values.shape[-1] == len(self.names) and values.shape[0] > values.shape[-1]
        ):
            values = np.moveaxis(values, -1, 0)
        return {name: np.array(of) for name, of in zip(self.names, values, strict=True)}

    def files(self) -> Iterator[Path]:
        yield from ([self.root] if self._paths is None else (self.root / path for path in self._paths))

    def fingerprint(self) -> str:
        labels = () if self._labels is None else (self._labels,)
        return fingerprint("named", self._count, self._paths, self.channels, self.names, *labels)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_whole"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._paths is None:
            self._open()  # a mapped array would otherwise be copied into the message to the worker


def open_named_channels(
    root: str | None,
    list: str | None = None,
    *,
    channels: Annotated[dict[str, list[str]], MinLen(1)],
    names: list[str] | None = None,
) -> Source:
    """Arrays whose channels have names, shared out to modalities: bands of satellites, stacks of sensors.

    ``data.root`` is a folder of files with one sample each, or one file of many: .npz files with an array for each
    name, (height, width) or (samples, height, width), or .npy files (channels, height, width) or (samples, channels,
    height, width) whose channels ``names`` tells. A sample without any channel of a modality lacks that modality.

    Options
        channels: {modality: [names of its channels]}
        names: of all channels of .npy files, in their order; null: files are .npz
    """
    if list is not None:
        raise MaemmError("named_channels has no data.list; set data.root to a folder or a file")
    if root is None:
        raise MaemmError("no data are given; set data.root to a folder of .npz or .npy files, or to one file")
    for modality, wanted in channels.items():
        unknown = [name for name in wanted if names is not None and name not in names]
        if not wanted or unknown:
            what = f"{unknown[0]!r} is not in data.source.names" if unknown else "no channel is named"
            raise MaemmError(f"{what} (data.source.channels.{modality}); name the channels of {modality}")
    return NamedChannels(existing(root, "data.root"), {name: [*of] for name, of in channels.items()}, names)
