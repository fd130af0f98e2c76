"""What sources of files have in common: paths in memory that workers share, and checks of user input."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maemm.config.paths import expanded
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.labels import LabelTable


class Files(Source):
    """One sample per file below a folder; subclasses open the files.

    ``paths``: relative to ``folder``. ``name``: the modality that the samples are for. Paths are kept in one block of
    bytes: a million Python strings would sooner or later be copied into every worker, since counting references writes
    to their memory pages.
    """

    #: Whether a source that was opened on a folder by the names in it serves any other file of the same name, too.
    serves_any_file = False

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Sequence[Label | None] | None = None,
        classes: Sequence[str] | None = None,
        *,
        name: str,
    ):
        self.folder, self.modality, self.classes = os.fsencode(folder), name, classes
        encoded = [os.fsencode(path) for path in paths]
        self._paths = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._labels = None if labels is None else LabelTable(labels)
        self.multilabel = self._labels is not None and self._labels.multilabel

    @abstractmethod
    def open(self, path: bytes, rng: Rng) -> Any:
        """The file ``path`` -> what ``load`` of the modality expects. Any exception makes the sample unreadable."""

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> bytes:
        """Path relative to the folder."""
        start = self._ends[index - 1] if index else 0
        return self._paths[start : self._ends[index]].tobytes()

    def name(self, index: int) -> str:
        """What messages call the sample: its path relative to the folder."""
        return printable_name(self.path(index))

    def label(self, index: int) -> Label | None:
        """The label; None where there is none."""
        return None if self._labels is None else self._labels[index]

    def read(self, index: int, rng: Rng) -> Sample:
        raw = self.open(os.path.join(self.folder, self.path(index)), rng)
        return Sample({self.modality: raw}, self.name(index), self.label(index))

    def paths(self, index: int) -> Mapping[str, str | os.PathLike[str]] | None:
        return {self.modality: os.fsdecode(os.path.join(self.folder, self.path(index)))}

    def files(self) -> Iterator[bytes]:
        for index in range(len(self)):
            yield os.path.join(self.folder, self.path(index))

    def fingerprint(self) -> str:
        """Depends on the relative paths and the labels; moving the folder changes nothing."""
        labels = (None,) if self._labels is None else self._labels.arrays
        return fingerprint("files", len(self), self._paths, self._ends, *labels)


def existing(path: str, key: str) -> Path:
    """The path, with ``~`` expanded. Raises :class:`MaemmError`, naming the option ``key``, where it is missing."""
    place = expanded(path)
    try:
        place.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MaemmError(f"{key} cannot be opened ({path}: {reason}); check the path") from error
    return place


def endings(chosen: Iterable[str] | None, supported: Sequence[str]) -> tuple[str, ...]:
    """Endings of file names, lower case with a dot: the chosen ones (one or several), or with None all supported."""
    if chosen is None:
        return tuple(supported)
    if isinstance(chosen, str):
        chosen = [chosen]
    return tuple("." + ending.lower().lstrip(".") for ending in chosen)


def whole_labels(labels: np.ndarray | None, count: int, file: Path, *, multilabel: bool = False) -> np.ndarray | None:
    """Labels of an array file -> (count,) int64; with ``multilabel`` also (count, classes) int8 of 0 and 1.

    Raises :class:`MaemmError` for another shape or type. :func:`maemm.data.labels.label_at` reads both forms.
    """
    if labels is None:
        return None
    labels = labels.reshape(-1) if labels.shape in ((count, 1), (1, count)) else labels
    if multilabel and labels.ndim == 2 and len(labels) == count and np.isin(labels, (0, 1)).all():
        return labels.astype(np.int8)
    if labels.shape != (count,) or labels.dtype.kind not in "iub":
        raise MaemmError(
            f"labels have shape {labels.shape} and type {labels.dtype} for {count} samples ({file}); "
            "store one whole number per sample"
        )
    return labels.astype(np.int64)


def fingerprint(kind: str, *parts: Any) -> str:
    """A short text that depends on the parts: on the bytes of arrays, on ``str()`` of everything else."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else str(part).encode())
        digest.update(b"\x1f")
    return f"{kind}:{digest.hexdigest()}"


def printable_name(path: str | bytes) -> str:
    """A path as text that can be printed: file names need not be valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
