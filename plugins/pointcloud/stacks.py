"""Files with many clouds: arrays (n, N, C) in .npy, .npz and HDF5 files, with labels, names and splits."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import fingerprint, printable_name, whole_labels

from .readers.arrays import load, point_key, single_cloud
from .readers.pick import Reading

LABEL_KEYS = ("labels", "label", "y", "targets")
CLASS_KEYS = ("classes", "class_names", "label_names", "shape_names")


class Stack(ABC):
    """One file with n clouds of N points. Pickles without what it has opened, so that workers receive it cheaply."""

    labels: np.ndarray | None = None  # (n,) int64
    classes: list[str] | None = None
    names: np.ndarray | None = None  # (n,) texts
    split: np.ndarray | None = None  # (n,) texts

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(n, N, C)."""

    @abstractmethod
    def cloud(self, index: int) -> np.ndarray:
        """(N, C)."""

    def name(self, index: int) -> str:
        """``file#index``, or ``file#name`` where the file has names."""
        return f"{printable_name(self.path.name)}#{index if self.names is None else self.names[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_data"}


class Arrays(Stack):
    """A .npy file, mapped, or the arrays of a .npz file, in memory."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._open()

    def _open(self) -> None:
        with self.path.open("rb") as file:
            packed = file.read(2) == b"PK"
            file.seek(0)
            if not packed:
                self._data = load(self.path, mmap_mode="r")
                return
            with load(file) as archive:
                self._data = archive[point_key(archive)]
                self._describe(archive)

    def _describe(self, archive: Any) -> None:
        """Read labels, classes, names and splits of a .npz file of many clouds."""

        def first(keys: Sequence[str]) -> np.ndarray | None:
            return next((archive[key] for key in keys if key in archive.files), None)

        if self._data.ndim != 3:
            return
        count = len(self._data)
        self.labels = whole_labels(first(LABEL_KEYS), count, self.path)
        classes, self.names, self.split = first(CLASS_KEYS), first(("names",)), first(("split",))
        self.classes = None if classes is None else [str(name) for name in classes.reshape(-1)]
        for key in ("names", "split"):
            texts = getattr(self, key)
            if texts is not None and texts.shape != (count,):
                raise MaemmError(f"{key} has shape {texts.shape} for {count} clouds ({self.path}); store one per cloud")

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    def cloud(self, index: int) -> np.ndarray:
        return self._data[index]


class HDF5(Stack):
    """An HDF5 file, opened once in each process that reads it."""

    def __init__(self, path: Path):
        super().__init__(path)
        file, data = self._opened()
        labels = next((file[key][()] for key in LABEL_KEYS if key in file), None)
        self._shape = tuple(data.shape)
        self.labels = None if len(self._shape) < 3 else whole_labels(labels, self._shape[0], path)
        names = path.parent / "shape_names.txt"  # beside the files of ModelNet40
        if self.labels is not None and names.is_file():
            self.classes = names.read_text(encoding="utf-8", errors="replace").split()

    def _opened(self) -> tuple[Any, Any]:
        """(file, dataset), opened anew in a forked process, which must not share an open file."""
        opened = self.__dict__.get("_data")
        if opened is None or opened[0] != os.getpid():
            from .readers import hdf5

            file = hdf5.open_file(os.fspath(self.path))
            opened = self._data = (os.getpid(), file, hdf5.points_of(file))
        return opened[1:]

    def shape(self) -> tuple[int, ...]:
        return self._shape

    def cloud(self, index: int) -> np.ndarray:
        return np.asarray(self._opened()[1][index])


class Stacks(Source):
    """The clouds of one or more stacks, one after another; with ``split``, only those of that split."""

    def __init__(self, stacks: Sequence[Stack], options: Reading, name: str, split: str | None = None):
        self.stacks, self.options, self.modality = list(stacks), options, name
        counts = [stack.shape()[0] for stack in self.stacks]
        self._at = np.concatenate([np.stack([np.full(n, i), np.arange(n)], 1) for i, n in enumerate(counts)])
        if split is not None:
            self._at = self._at[np.concatenate([self._in_split(stack, split) for stack in self.stacks])]
        classes = [stack.classes for stack in self.stacks if stack.classes]
        self.classes = classes[0] if classes and all(names == classes[0] for names in classes) else None
        most = max((int(labels.max()) for labels in self._all_labels() if len(labels)), default=-1)
        if self.classes and most >= len(self.classes):
            raise MaemmError(f"label {most} has no name ({self.stacks[0].path}: {len(self.classes)} classes); add it")

    def _in_split(self, stack: Stack, split: str) -> np.ndarray:
        """(n,) bool."""
        if stack.split is None:
            raise MaemmError(f"the file has no array 'split' ({stack.path}; data.source.split); leave split out")
        names = stack.split.astype(str)
        if split not in names:
            splits = ", ".join(sorted(set(names)))
            raise MaemmError(f"no cloud is in split {split!r} ({stack.path}; data.source.split); there are {splits}")
        return names == split

    def __len__(self) -> int:
        return len(self._at)

    def name(self, index: int) -> str:
        stack, row = self._where(index)
        return stack.name(row)

    def read(self, index: int, rng: Rng) -> Sample:
        stack, row = self._where(index)
        cloud = self.options.drop_nonfinite(single_cloud(stack.cloud(row), self.options))
        label = None if stack.labels is None else int(stack.labels[row])
        return Sample({self.modality: cloud}, stack.name(row), None if label is None or label < 0 else label)

    def _where(self, index: int) -> tuple[Stack, int]:
        stack, row = self._at[index]
        return self.stacks[int(stack)], int(row)

    def files(self) -> Iterable[Path]:
        return [stack.path for stack in self.stacks]

    def fingerprint(self) -> str:
        """Of the shapes, labels, the rows in use and the points of up to three clouds per file."""
        counts = [stack.shape()[0] for stack in self.stacks]
        probes = [
            np.ascontiguousarray(stack.cloud(row))
            for stack, count in zip(self.stacks, counts, strict=True)
            for row in sorted({0, count // 2, count - 1})
        ]
        shapes = [stack.shape() for stack in self.stacks]
        return fingerprint("clouds", *shapes, self._at, *probes, *self._all_labels())

    def _all_labels(self) -> list[np.ndarray]:
        return [stack.labels for stack in self.stacks if stack.labels is not None]


def open_stack(path: Path) -> Stack | None:
    """The stack at ``path``; None if the file holds a single cloud. Raises :class:`MaemmError`."""
    try:
        stack = HDF5(path) if path.suffix.lower() in (".h5", ".hdf5") else Arrays(path)
    except MaemmError:
        raise
    except Exception as error:  # h5py, zipfile and zlib raise many types
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MaemmError(f"cannot read the clouds ({path}: {reason}); give another file") from error
    shape = stack.shape()
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise MaemmError(f"clouds need 3 dimensions, the array has shape {shape} ({path}); store (n, points, columns)")
    if not all(shape) or shape[2] < 3:
        raise MaemmError(f"the array holds no clouds (shape {shape}, {path}); store (n, points, 3 or more columns)")
    return stack
