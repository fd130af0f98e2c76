"""Arrays beside the samples of another source: ids of tokens that a tokenizer made once, maps, scores."""

from __future__ import annotations

import csv
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import PartOf
from maemm.contract.rng import Rng
from maemm.data.arrays import open_array_file
from maemm.data.files import existing, fingerprint
from maemm.data.lists import PATH_COLUMNS
from maemm.registry.make import part_of

_TABLES = {".csv": ",", ".tsv": "\t"}


class Beside(Source):
    """``source`` with ``columns`` {name: what has a value for each sample} in ``Sample.sides`` of ``modality``."""

    def __init__(self, source: Source, modality: str, columns: Mapping[str, _Column]):
        self.source, self.modality, self.columns = source, modality, dict(columns)
        self.classes, self.multilabel, self.tta_views = source.classes, source.multilabel, source.tta_views

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def label(self, index: int) -> Label | None:
        return self.source.label(index)

    def read_ahead(self, indices: Sequence[int]) -> None:
        self.source.read_ahead(indices)

    @property
    def shard_sizes(self) -> np.ndarray | None:
        return self.source.shard_sizes

    def read(self, index: int, rng: Rng) -> Sample:
        return self._with_sides(index, self.source.read(index, rng))

    def tta_view(self, index: int, number: int) -> Sample:
        return self._with_sides(index, self.source.tta_view(index, number))

    def _with_sides(self, index: int, sample: Sample) -> Sample:
        own = {name: column.read(index, self.source.name(index)) for name, column in self.columns.items()}
        return replace(sample, sides={**sample.sides, self.modality: {**sample.sides.get(self.modality, {}), **own}})

    def files(self) -> Iterator[str | bytes | os.PathLike[str]]:
        yield from self.source.files()
        yield from (column.path for column in self.columns.values())

    def fingerprint(self) -> str:
        columns = (f"{name}={column.fingerprint()}" for name, column in self.columns.items())
        return fingerprint("beside", self.source.fingerprint(), *columns)


class _Column(ABC):
    """A value for each sample, in a file or a folder."""

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def read(self, index: int, name: str) -> np.ndarray:
        """The value of the sample ``index``, called ``name``. Any exception makes the sample unreadable."""

    def fingerprint(self) -> str:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:24]


class _Array(_Column):
    """Row n of a .npy file (samples, ...) is that of sample n. The file is mapped anew in every process."""

    def __init__(self, path: Path, samples: int, key: str):
        super().__init__(path)
        try:
            with open_array_file(path) as stored:
                shape, kind = (stored.shape, stored.dtype.kind) if isinstance(stored, np.ndarray) else ((), "")
        except (OSError, ValueError) as error:
            raise MaemmError(f"the array cannot be read ({key}: {path}: {error}); give a .npy file") from None
        if kind not in "biuf" or not shape or shape[0] != samples:
            raise MaemmError(
                f"the array has shape {shape} for {samples:,} samples ({key}: {path}); store a row for each sample, in "
                "the order in which the source lists them"
            )

    def read(self, index: int, name: str) -> np.ndarray:
        return _plain(np.load(self.path, mmap_mode="r", allow_pickle=False)[index])


class _Folder(_Column):
    """``FOLDER/a/b.npy`` is the value of the sample ``a/b.jpg``."""

    def read(self, index: int, name: str) -> np.ndarray:
        file = self.path / PurePosixPath(name).with_suffix(".npy")
        with open_array_file(file, mmap=False) as stored:
            if not isinstance(stored, np.ndarray):
                raise ValueError(f"{file} is no .npy file")
            return _plain(stored)

    def fingerprint(self) -> str:
        return "folder"  # its files are those of the samples


class _Table(_Column):
    """A column of a .csv or .tsv file: whole numbers, divided by spaces, beside the paths of the samples."""

    def __init__(self, path: Path, column: str, key: str):
        super().__init__(path)
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter=_TABLES[path.suffix.lower()], skipinitialspace=True)
            header = rows.fieldnames or []
            by = next((name for name in header if name in (*PATH_COLUMNS, "id", "name")), None)
            if by is None or column not in header:
                raise MaemmError(
                    f"the table has the columns {', '.join(header) or 'none'} ({key}: {path}); it needs path and "
                    f"{column}"
                )
            texts = {_stem(row[by] or ""): row[column] or "" for row in rows}
        try:
            self.values = np.array([text.split() for text in texts.values()], np.int64)
        except ValueError:
            raise MaemmError(
                f"{column} is not the same count of whole numbers in each row ({key}: {path}); divide them by spaces"
            ) from None
        self.rows = {name: row for row, name in enumerate(texts)}

    def read(self, index: int, name: str) -> np.ndarray:
        row = self.rows.get(_stem(name))
        if row is None:
            raise ValueError(f"{self.path.name} has no row for it")
        return self.values[row]


def _stem(name: str) -> str:
    """A path without its ending."""
    return str(PurePosixPath(name.strip()).with_suffix(""))


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy that torch accepts: whole numbers in int64, others in float32."""
    return np.array(array, np.float32 if array.dtype.kind == "f" else np.int64)


def open_beside(
    root: str | None,
    list: str | None = None,
    *,
    name: str | None = None,
    source: Annotated[str | dict[str, Any], PartOf("sources")],
    arrays: Annotated[dict[str, str | None], MinLen(1)],
) -> Source:
    """The samples of another source, each with values that targets and objectives ask for by name.

    ``data.root`` and ``data.list`` are those of the other source. What is stored belongs to the samples as they are
    without augmentation. Raises :class:`MaemmError` where an array does not fit the samples.

    Options
        name: the modality that the samples, and the arrays, are for; null: that of the recipe, if it has one
        source: the source of the samples, a name or {type: name, options}
        arrays: {name: file}: .npy with a row for each sample in the order of the source, a folder with a .npy for each
            sample under its path, or .csv or .tsv with the columns path and NAME (whole numbers divided by spaces)
    """
    if name is None:
        raise MaemmError("the recipe has several modalities (data.source); set data.source.name to that of the arrays")
    kind, options = part_of(source)
    opener = registry.find("sources", kind)
    if "name" in options_of(opener):
        options.setdefault("name", name)
    check(opener, options, "data.source.source")
    opened: Source = opener(root, list, **options)
    columns = {side: _column(side, path, len(opened)) for side, path in arrays.items()}
    return Beside(opened, name, columns)


def _column(side: str, file: str | None, samples: int) -> _Column:
    key = f"data.source.arrays.{side}"
    if not file:
        raise MaemmError(f"no file of {side} is given ({key}); set it to a .npy, .csv or .tsv file, or to a folder")
    path = existing(file, key)
    if path.is_dir():
        return _Folder(path)
    if path.suffix.lower() in _TABLES:
        return _Table(path, side, key)
    return _Array(path, samples, key)
