"""Sources of arrays for any modality: one .npy or .npz file of samples, or a folder or a list of files of one each.

A plugin's own source is often no more than::

    def open_sonar(root, list=None, *, name: str = "sonar") -> Source:
        return open_arrays(root, list, name)

and with ``read=`` (a function path -> array) and ``endings=`` the same for files of any other kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import Files, existing, fingerprint, printable_name, whole_labels
from maemm.data.labels import label_at
from maemm.data.lists import Labels, class_labels, find_files, read_list

ENDINGS = (".npy", ".npz")
LABELS = ("y", "labels", "label", "targets", "y_train")
Read = Callable[[Path], np.ndarray]


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, or the one called "x" (or the only one) of a .npz file.

    Raises ValueError for anything but plain numbers: Python objects are never unpickled.
    """
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        with found:
            found = found[_key_of(found)]
    return plain(_numbers(found))


def plain(array: np.ndarray) -> np.ndarray:
    """uint8 as it is, all other numbers in float32: what tensors take, whatever the bytes' order in the file."""
    with np.errstate(over="ignore"):  # becomes infinite, which is refused by name when it is loaded
        return array if array.dtype == np.uint8 else array.astype(np.float32)


def open_arrays(
    root: str | None, list: str | None, name: str, *, read: Read = read_array, endings: Sequence[str] = ENDINGS
) -> Source:
    """The source for ``data.root`` and ``data.list``; which kind it is follows from what is there.

    A folder is searched through, a file is a sample; files in folders of exactly one level have those as classes. A
    list (.txt, .csv, .tsv) names files and labels. A .npy file holds samples along its first axis; a .npz file holds
    them as "x" (or its only array), and labels as "y". ``name``: the modality that the samples are for. ``read`` and
    ``endings``: how to read a sample's file, and which files those are. Raises :class:`MaemmError` where there is
    nothing to read.
    """
    if not root and not list:
        raise MaemmError(
            f"no data are given; set data.root to a folder of {' or '.join(endings)} files, or to one file"
        )
    home = None if not root else existing(root, "data.root")
    if list:
        folder, paths, labels, classes = read_list(existing(list, "data.list"), home, endings)
        return ArrayFiles(folder, paths, labels, classes, name=name, read=read)
    if home.is_dir():
        paths = find_files(home, endings)
        if not paths:
            raise MaemmError(f"no file below the folder ({root}) ends in {' or '.join(endings)}; check data.root")
        return ArrayFiles(home, paths, *class_labels(paths), name=name, read=read)
    if home.suffix.lower() in ENDINGS:
        return ArrayFile(home, name)
    raise MaemmError(f"data.root is a file of no known kind ({root}); give a folder, a .npy or a .npz file")


class ArrayFiles(Files):
    """Files with one sample each, below a folder."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Labels | None,
        classes: Sequence[str] | None,
        *,
        name: str,
        read: Read = read_array,
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self._read = read

    def open(self, path: bytes, rng: Rng) -> np.ndarray:
        return self._read(Path(os.fsdecode(path)))


class ArrayFile(Source):
    """Samples along the first axis of one array. A .npy file is mapped, so it may be larger than memory."""

    def __init__(self, path: Path, name: str):
        self.file, self.modality = Path(path), name
        self._open()

    def __len__(self) -> int:
        return len(self._values)

    def name(self, index: int) -> str:
        """What messages call the sample: ``file#index``."""
        return f"{printable_name(self.file.name)}#{index}"

    def read(self, index: int, rng: Rng) -> Sample:
        values = self.sample(self._values[index])
        return Sample({self.modality: values}, self.name(index), self.label(index))

    def label(self, index: int) -> Label | None:
        return label_at(self._labels, index)

    def files(self) -> Iterable[Path]:
        return (self.file,)

    def fingerprint(self) -> str:
        """Shape, type, labels and some of the values."""
        some = np.ascontiguousarray(self._values[:: max(1, len(self) // 16)])
        return fingerprint("array", self._values.shape, self._values.dtype, some, self._labels)

    def find(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """The array of samples and their labels in a file. Whatever is wrong with it is an exception."""
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, None
        with found:
            return found[_key_of(found)], next((found[key] for key in LABELS if key in found.files), None)

    def check(self, values: np.ndarray) -> None:
        """Raises :class:`MaemmError`, or ValueError, for an array that holds no samples."""
        _numbers(values)
        if values.ndim < 2 or not values.size:
            raise MaemmError(f"the array has shape {values.shape} ({self.file}); its first axis must be the samples")

    def sample(self, values: np.ndarray) -> np.ndarray:
        """A row of the array -> what the modality's ``load`` takes."""
        return plain(values).copy()  # the file is mapped for reading alone

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_values", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()  # a mapped array would otherwise be copied into the message to the worker

    def _open(self) -> None:
        try:
            values, labels = self.find(self.file)
            self.check(values)
        except MaemmError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy have many
            why = " ".join(str(error).split())
            if "Object arrays" in why:
                why = "it holds Python objects, which may run code"
            raise MaemmError(f"cannot read the array ({self.file}: {why}); save plain numbers with numpy") from error
        self._values, self._labels = values, whole_labels(labels, len(values), self.file, multilabel=True)
        self.multilabel = self._labels is not None and self._labels.ndim == 2


def _key_of(archive: Any) -> str:
    others = [key for key in archive.files if key not in LABELS]
    if "x" in others or len(others) == 1:
        return "x" if "x" in others else others[0]
    raise ValueError(f"cannot tell which array is meant of {', '.join(archive.files) or 'none'}: call it x")


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it holds {array.dtype}, not plain numbers")
    return array
