"""Sources of arrays for any modality: one .npy or .npz file of samples, or a folder or list of files of one each.

A plugin's own source is often no more than::

    def open_sonar(root, list=None, *, name: str = "sonar") -> Source:
        return open_arrays(root, list, name)

and with ``read=`` (a function path -> array) and ``endings=`` the same for files of any other format. Sources that
read NumPy files in their own way use :func:`open_array_file`, :func:`array_key` and :func:`plain`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from maemm.config.paths import check_regular
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import Files, existing, fingerprint, printable_name, whole_labels
from maemm.data.labels import label_at
from maemm.data.lists import Labels, class_labels, find_files, read_list

ENDINGS = (".npy", ".npz")
LABELS = ("y", "labels", "label", "targets", "y_train")  # names of the labels in a .npz file
Read = Callable[[Path], np.ndarray]

_NPY, _ZIP = b"\x93NUMPY", b"PK"  # how the files begin


# ---------------------------------------------------------------------------------------------- reading NumPy files
@contextmanager
def open_array_file(path: str | os.PathLike[str], *, mmap: bool = True) -> Iterator[np.ndarray | NpzFile]:
    """The array of a .npy file, or the open archive of a .npz file; their first bytes tell which it is.

    ``mmap``: map the array of a .npy file, so that only what is used is read. Python objects are never unpickled.
    Whatever is wrong with the file, also while an array of the archive is read, is an OSError or a ValueError whose
    text is the reason in one line.
    """
    try:
        check_regular(path)
    except IsADirectoryError:
        raise
    except OSError as error:
        raise ValueError(error.strerror) from error
    with open(path, "rb") as file:
        start = file.read(6)
        file.seek(0)
        try:
            if start == _NPY:
                yield np.load(path if mmap else file, mmap_mode="r" if mmap else None, allow_pickle=False)
            elif start.startswith(_ZIP):
                with np.load(file, allow_pickle=False) as archive:
                    yield archive
            else:
                raise ValueError(f"not an array file (starts with {start!r})" if start else "empty file (0 bytes)")
        except (OSError, MemoryError, MaemmError):
            raise
        except Exception as error:  # zipfile, zlib, tokenize and NumPy raise many types
            raise ValueError(_reason(error)) from error


def array_key(archive: NpzFile, names: Sequence[str] = ("x",), ignore: Iterable[str] = LABELS) -> str:
    """The name of the array in a .npz file: the first of ``names`` that it has, or the only one not in ``ignore``.

    Raises ValueError where neither tells which it is.
    """
    key = next((name for name in names if name in archive.files), None)
    if key is not None:
        return key
    others = [name for name in archive.files if name not in ignore]
    if len(others) != 1:
        raise ValueError(
            f"cannot tell which array is meant of {', '.join(archive.files) or 'none'}: call it {names[0]}"
        )
    return others[0]


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, or the one named "x" (or the only one) of a .npz file, as :func:`plain`.

    Raises ValueError for anything but plain numbers, and OSError.
    """
    with open_array_file(path, mmap=False) as stored:
        array = stored if isinstance(stored, np.ndarray) else stored[array_key(stored)]
    return plain(_numbers(array))


def plain(array: np.ndarray) -> np.ndarray:
    """A copy that torch accepts: uint8 as it is, all other numbers in float32, in native byte order.

    Raises ValueError for numbers that float32 cannot hold.
    """
    return np.array(array) if array.dtype == np.uint8 else as_float32(array)


def as_float32(array: np.ndarray) -> np.ndarray:
    """A copy in float32. Raises ValueError for finite numbers that become infinite; infinity and NaN stay."""
    with np.errstate(over="ignore"):
        narrowed = np.array(array, np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and np.isinf(narrowed).any():
        lost = array[np.isinf(narrowed) & np.isfinite(array)]
        if lost.size:
            largest = lost.flat[np.abs(lost).argmax()]
            raise ValueError(f"{lost.size:,} values are too large for float32 (up to {largest:.3g}); scale them")
    return narrowed


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it holds {array.dtype}, not plain numbers")
    return array


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if any(words in text for words in ("Object arrays", "Python objects", "pickled")):
        return "it holds Python objects, which may run code"
    if isinstance(error, zipfile.BadZipFile):
        return f"the archive is cut off or damaged ({text})"
    return text or type(error).__name__


# --------------------------------------------------------------------------------------------------------- sources
def open_arrays(
    root: str | None, list: str | None, name: str, *, read: Read = read_array, endings: Sequence[str] = ENDINGS
) -> Source:
    """The source for ``data.root`` and ``data.list``; its kind depends on what these paths are.

    A folder is searched for files with one sample each; where they lie in folders of exactly one level, these are the
    classes. A list (.txt, .csv, .tsv) names files and labels. A .npy file holds samples along its first axis; a .npz
    file holds them as "x" (or its only array), and labels as "y". ``name``: the modality that the samples are for.
    ``read`` and ``endings``: how to read the file of a sample, and the endings of such files. Raises
    :class:`MaemmError` where there is nothing to read.
    """
    folder = None if not root else existing(root, "data.root")
    if list:
        home, paths, labels, classes = read_list(existing(list, "data.list"), folder, endings)
        return ArrayFiles(home, paths, labels, classes, name=name, read=read)
    if folder is None:
        raise MaemmError(
            f"no data are given; set data.root to a folder of {' or '.join(endings)} files, or to one file"
        )
    if folder.is_dir():
        paths = find_files(folder, endings)
        if not paths:
            raise MaemmError(f"no file below the folder ({root}) ends in {' or '.join(endings)}; check data.root")
        return ArrayFiles(folder, paths, *class_labels(paths), name=name, read=read)
    if folder.suffix.lower() in ENDINGS:
        return ArrayFile(folder, name)
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
    """Samples along the first axis of one array. A .npy file is mapped, so it may be larger than memory.

    Subclasses may override :meth:`find`, :meth:`check` and :meth:`sample`.
    """

    def __init__(self, path: Path, name: str):
        self.file, self.modality = Path(path), name
        self._open()

    def __len__(self) -> int:
        return len(self._values)

    def name(self, index: int) -> str:
        """What messages call the sample: ``file#index``."""
        return f"{printable_name(self.file.name)}#{index}"

    def read(self, index: int, rng: Rng) -> Sample:
        return Sample({self.modality: self.sample(self._values[index])}, self.name(index), self.label(index))

    def label(self, index: int) -> Label | None:
        return label_at(self._labels, index)

    def files(self) -> Iterable[Path]:
        return (self.file,)

    def fingerprint(self) -> str:
        """Shape, type, labels and some of the values."""
        values = np.ascontiguousarray(self._values[:: max(1, len(self) // 16)])
        return fingerprint("array", self._values.shape, self._values.dtype, values, self._labels)

    def find(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples (n, ...) in ``file`` and their labels. Any exception means that the file cannot be read."""
        with open_array_file(file) as stored:
            if isinstance(stored, np.ndarray):
                return stored, None
            labels = next((stored[key] for key in LABELS if key in stored.files), None)
            return stored[array_key(stored)], labels

    def check(self, values: np.ndarray) -> None:
        """Raise :class:`MaemmError`, or ValueError, for an array that does not hold samples."""
        _numbers(values)
        if values.ndim < 2 or not values.size:
            raise MaemmError(f"the array has shape {values.shape} ({self.file}); its first axis must be the samples")

    def sample(self, values: np.ndarray) -> np.ndarray:
        """One row of the array -> what ``load`` of the modality expects, as a writable copy."""
        return plain(values)

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
        except Exception as error:
            raise MaemmError(
                f"cannot read the array ({self.file}: {_reason(error)}); save plain numbers with numpy"
            ) from error
        self._values, self._labels = values, whole_labels(labels, len(values), self.file, multilabel=True)
        self.multilabel = self._labels is not None and self._labels.ndim == 2
