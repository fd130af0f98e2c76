"""Data sets of the library `datasets` of Hugging Face, by the names of their columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from maemm.config.paths import expanded
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError, NotInstalled
from maemm.contract.options import NonNegative, PartOf
from maemm.contract.rng import Rng
from maemm.data.bad_samples import reason_of
from maemm.data.files import fingerprint
from maemm.data.shards.as_files import Part, make_part
from maemm.data.shards.columns import column_for, label_column, label_of, sample_of
from maemm.data.shards.parquet import Parquet
from maemm.data.shards.storage import Storage

_PART = Annotated[dict[str, Any] | None, PartOf("sources", besides=("name",))]


class Table(Source):
    """A sample per row of a data set that the library has on this machine."""

    def __init__(self, table: Any, parts: Sequence[Part], columns: Mapping[str, str], label: str | None):
        names = table.column_names
        self._label = label_column(names, label)
        self.parts = {
            column_for(part, columns.get(part.name), names, alone=len(parts) == 1, label=self._label): part
            for part in parts
        }
        self.table = _undecoded(table, [*self.parts])
        feature = None if self._label is None else table.features[self._label]
        inner = getattr(feature, "feature", feature)
        self.multilabel = inner is not feature
        named = getattr(inner, "names", None)
        if named is None and getattr(inner, "dtype", "") == "string":
            # Of lists the library finds no unique ones itself.
            texts = (
                chain.from_iterable(filter(None, table[self._label])) if self.multilabel else table.unique(self._label)
            )
            named = sorted({text for text in texts if text is not None})
        self.classes = None if named is None else [*named]
        self._numbers = None if self.classes is None else {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.table)

    def label(self, index: int) -> Label | None:
        return None if self._label is None else label_of(self.table[index][self._label], self._numbers)

    def read(self, index: int, rng: Rng) -> Sample:
        row = self.table[index]
        label = None if self._label is None else label_of(row[self._label], self._numbers)
        return sample_of(row, self.parts, self.name(index), label, rng)

    def files(self) -> list[str]:
        return [file["filename"] for file in self.table.cache_files]

    def fingerprint(self) -> str:
        """That of the library."""
        return fingerprint("datasets", self.table._fingerprint, [*self.parts])


def _undecoded(table: Any, columns: Sequence[str]) -> Any:
    """The table with files as bytes: the plugins decode them, as they do from a folder."""
    for column in columns:
        if hasattr(table.features[column], "decode"):
            kind = type(table.features[column])
            table = table.cast_column(column, kind(decode=False))
    return table.select_columns([name for name in table.column_names]).with_format(None)


def open_datasets(
    root: str | None,
    list: str | None = None,
    *,
    name: str | None = None,
    source: Annotated[str | dict[str, Any] | None, PartOf("sources")] = None,
    parts: Annotated[dict[str, _PART], MinLen(1)] | None = None,
    columns: dict[str, str] | None = None,
    label: str | None = None,
    split: str = "train",
    config: str | None = None,
    streaming: bool = False,
    retry_seconds: NonNegative = 300.0,
) -> Source:
    """A data set of Hugging Face's `datasets`: a name on the hub, or a folder that ``save_to_disk`` wrote.

    Columns hold files (as bytes, images, audio) or numbers, which the sources of the plugins read as files. With
    ``streaming`` nothing is stored: its Parquet files are read where they are, in the same exact order. Raises
    :class:`MaemmError` where the library is missing, and for what it cannot open.

    Options
        name: the modality that the samples are for; null: that of the recipe, if it has one
        source: the source that reads a value, a name or {type, options}; null: that of the modality's type
        parts: of several modalities, {NAME: {type (default: NAME), options}}
        columns: {modality: column}; null: the column with its name, or the only one that is no label
        label: column of labels; null: the first of label, labels, class, target, fine_label, category that is there
        split: part of the data set, as the library writes it: train, test, train[:10%]
        config: configuration of the data set, where it has several
        streaming: read its Parquet files where they are; set data.shuffle to a small number then
        retry_seconds: with streaming, how long a server that does not answer is asked again
    """
    if list is not None:
        raise MaemmError("datasets have no data.list; choose a part with data.source.split")
    if not root:
        raise MaemmError("no data set is given; set data.root to its name on the hub, or to a folder")
    library = _library(root)
    if _is_missing(root):
        raise MaemmError(f"there is no such folder ({root}); give a name on the hub, or a folder that exists")
    if parts is None and name is None:
        raise MaemmError("the recipe has several modalities; set data.source.parts to {MODALITY: {}, ...}")
    readers = (
        [make_part(name, source or {}, "data.source.source", besides=())]
        if parts is None and name is not None
        else [make_part(key, spec or {}, f"data.source.parts.{key}", besides=()) for key, spec in (parts or {}).items()]
    )
    if streaming:
        storage, files = _parquet_files(library, root, split, config, retry_seconds)
        return Parquet(storage, files, readers, columns or {}, label)
    return Table(_load(library, root, split, config), readers, columns or {}, label)


def _is_missing(root: str) -> bool:
    """Whether ``root`` is a path, not a name such as ``owner/data``, and nothing is there."""
    return (root.startswith(("/", ".", "~")) or root.count("/") > 1) and not Path(expanded(root)).exists()


def _library(root: str) -> Any:
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        import datasets
    except ImportError as error:
        raise NotInstalled(
            f"reading {root} with the source datasets needs a package that is not installed; "
            "pip install 'maemm[datasets]'"
        ) from error
    return datasets


def _load(library: Any, root: str, split: str, config: str | None) -> Any:
    folder = Path(expanded(root))
    try:
        if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
            loaded = library.load_from_disk(str(folder))
            if isinstance(loaded, library.DatasetDict):
                if split not in loaded:
                    raise MaemmError(f"there is no split {split!r} (data.source.split); there are {', '.join(loaded)}")
                loaded = loaded[split]
            elif split != "train":
                raise MaemmError(
                    f"the folder holds one part, which has no splits ({root}); leave out data.source.split"
                )
            return loaded
        return library.load_dataset(str(folder) if folder.exists() else root, config, split=split)
    except MaemmError:
        raise
    except Exception as error:  # of whatever library it uses
        raise MaemmError(
            f"the data set cannot be opened ({root}: {reason_of(error)}); look at its name and split"
        ) from error


def _parquet_files(
    library: Any, root: str, split: str, config: str | None, patience: float
) -> tuple[Storage, Sequence[str]]:
    """The Parquet files of a split, and the storage that holds them."""
    folder = Path(expanded(root))
    try:
        builder = library.load_dataset_builder(str(folder) if folder.exists() else root, config)
        files = [str(file) for file in (builder.config.data_files or {}).get(split, [])]
    except Exception as error:
        raise MaemmError(
            f"the data set cannot be opened ({root}: {reason_of(error)}); look at its name and config"
        ) from error
    if "[" in split:
        raise MaemmError(f"a part of a split cannot be streamed (data.source.split={split}); leave out streaming")
    if not files or not all(file.endswith(".parquet") for file in files):
        raise MaemmError(
            f"the split {split!r} is not in Parquet files ({root}); leave out streaming, or convert the data set"
        )
    return Storage(files[0].rpartition("/")[0], patience=patience), files
