"""Samples in the rows of Parquet files, wherever they lie."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import DataLost, MaemmError, NotInstalled
from maemm.contract.rng import Rng
from maemm.data.bad_samples import reason_of
from maemm.data.files import fingerprint
from maemm.data.shards.as_files import Part
from maemm.data.shards.columns import column_for, label_column, label_of, sample_of
from maemm.data.shards.storage import Storage

_KEPT = 2**28  # bytes of row groups that a process keeps in memory, and at least one group


class Parquet(Source):
    """A sample per row. A row group is read as a whole, so that ``data.shuffle`` should be a small number of groups.

    ``columns``: {modality: column}; None: by name. Raises :class:`MaemmError` for files that cannot be read, and where
    columns are missing.
    """

    def __init__(
        self,
        storage: Storage,
        names: Sequence[str],
        parts: Sequence[Part],
        columns: Mapping[str, str],
        label: str | None,
    ):
        self.storage, self.names = storage, [*names]
        groups: list[tuple[int, int, int]] = []  # file, row group, rows
        schema: Any = None
        for number, name in enumerate(names):
            footer, own = self._footer(name)
            groups += [(number, group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]
            schema = schema or own
            if sorted(own.names) != sorted(schema.names):
                raise MaemmError(f"files have different columns ({storage.path(name)}); give files of one table")
        self._groups = np.array([group for group in groups if group[2]], np.int64).reshape(-1, 3)
        if not len(self._groups):
            raise MaemmError(f"the files have no rows ({storage.root}); give others")
        self._ends = np.cumsum(self._groups[:, 2])
        self._label = label_column(schema.names, label)
        self.parts = {
            column_for(part, columns.get(part.name), schema.names, alone=len(parts) == 1, label=self._label): part
            for part in parts
        }
        kind = None if self._label is None else str(schema.field(self._label).type)
        self.multilabel = kind is not None and kind.startswith(("list", "large_list"))
        self.classes = self._classes(schema)
        self._numbers = None if self.classes is None else {name: i for i, name in enumerate(self.classes)}
        self._tables: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shard_sizes(self) -> np.ndarray:
        return self._groups[:, 2]

    def name(self, index: int) -> str:
        group, row = self._place(index)
        file = int(self._groups[group, 0])
        own = self._groups[:, 0] == file
        return f"{self.names[file]}#{int(self._groups[own & (np.arange(len(own)) < group), 2].sum()) + row}"

    def label(self, index: int) -> Label | None:
        if self._label is None:
            return None
        group, row = self._place(index)
        return label_of(self._table(group)[self._label][row].as_py(), self._numbers)

    def read(self, index: int, rng: Rng) -> Sample:
        group, row = self._place(index)
        values = self._table(group).slice(row, 1).to_pylist()[0]
        label = None if self._label is None else label_of(values[self._label], self._numbers)
        return sample_of(values, self.parts, self.name(index), label, rng)

    def files(self) -> Iterator[str]:
        if self.storage.is_local:
            yield from (self.storage.path(name) for name in self.names)

    def fingerprint(self) -> str:
        """Of the numbers of rows, the columns and the classes; the rows themselves are not read."""
        return fingerprint("parquet", self._groups, [*self.parts], self.classes)

    # ---- helpers
    def _place(self, index: int) -> tuple[int, int]:
        """(row group, row in it)."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - int(self._ends[group] - self._groups[group, 2])

    def _footer(self, name: str) -> tuple[Any, Any]:
        with self._opened(name) as file:
            return file.metadata, file.schema_arrow

    def _opened(self, name: str) -> Any:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise NotInstalled("Parquet needs a package that is not installed; pip install 'maemm[parquet]'") from error
        try:
            return ParquetFile(self.storage.open(name))
        except (OSError, pyarrow.ArrowException) as error:
            raise MaemmError(f"no Parquet file ({self.storage.path(name)}: {reason_of(error)}); look at it") from error

    def _table(self, group: int) -> Any:
        """The needed columns of a row group. Raises :class:`DataLost` where its file has changed."""
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        file, own, rows = self._groups[group].tolist()
        columns = [*self.parts, *([] if self._label is None or self._label in self.parts else [self._label])]
        with self._opened(self.names[file]) as opened:
            if opened.metadata.num_row_groups <= own or opened.metadata.row_group(own).num_rows != rows:
                raise DataLost(
                    f"a file has changed since the run began ({self.storage.path(self.names[file])}); begin a new run"
                )
            table = opened.read_row_group(own, columns=columns)
        self._tables[group] = table
        while len(self._tables) > 1 and sum(kept.nbytes for kept in self._tables.values()) > _KEPT:
            self._tables.popitem(last=False)
        return table

    def _classes(self, schema: Any) -> list[str] | None:
        """Names of the classes: those that `datasets` wrote into the file, or the texts in the column of labels."""
        if self._label is None:
            return None
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = stored.get("info", {}).get("features", {}).get(self._label, {})
        if isinstance(feature, Mapping) and feature.get("names"):
            return [str(name) for name in feature["names"]]
        kind = schema.field(self._label).type
        if not _is_text(kind.value_type if self.multilabel else kind):
            return None
        texts: set[str] = set()
        for name in self.names:
            with self._opened(name) as file:
                for batch in file.iter_batches(columns=[self._label]):
                    column = batch.column(0).flatten() if self.multilabel else batch.column(0)
                    texts.update(text for text in column.unique().to_pylist() if text is not None)
        return sorted(texts)


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is of texts, also where each is stored once (the categories of pandas)."""
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    return str(kind) in ("string", "large_string", "string_view")
