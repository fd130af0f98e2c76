"""Data that a Python program holds, as a source: arrays, Datasets, lists of paths. What is none of these is refused.

An array of one sample means what a .npy file with it would mean to the source of the modality; where that source reads
no such files, it is what ``load`` of the modality takes.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from maemm import registry
from maemm.config.options import options_of
from maemm.config.paths import expanded
from maemm.contract import Label, Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.bad_samples import reason_of
from maemm.data.files import fingerprint
from maemm.data.open import open_source
from maemm.model.build import build_modalities
from maemm.registry.make import part_of

ACCEPTED = "a path, a list of paths, an array (N, ...), a torch Dataset or a Source"
LABEL = "label"  # key of the label in a sample that is a dict


def source_of(recipe: Mapping[str, Any], data: Any) -> Source:
    """``data`` that are no path, as a source for the modalities of a recipe.

    An array or tensor (N, ...): N samples of the only modality; a pair of it and N whole numbers: labelled samples. A
    map-style Dataset: its samples are arrays, tensors or PIL images of the only modality, or {modality: such},
    optionally with a label beside: ``(sample, label)``, or the key ``label``; where it has ``classes``, these are
    their names. A list of paths: what the recipe's source reads. A source is returned as it is. Raises
    :class:`MaemmError` for anything else, and where the first sample cannot be read.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, (list, tuple)) and data and all(isinstance(path, (str, os.PathLike)) for path in data):
        return _of_paths(recipe, data)
    labels = None
    if _is_pair(data):
        data, labels = data[0], _whole_numbers(data[1], len(data[0]))
    if isinstance(data, np.ma.MaskedArray):
        raise MaemmError("data is a MaskedArray; give an array without gaps, data.filled(...)")
    if isinstance(data, (np.ndarray, Tensor)):
        values = _array(data)
        if values.ndim < 2 or not values.size:
            raise MaemmError(f"data is an array of shape {values.shape}; give (N, ...), samples along the first axis")
        if values.dtype.kind not in "biuf":
            raise MaemmError(f"data is an array of {values.dtype}, not of plain numbers; give {ACCEPTED}")
        source = Samples(recipe, values, labels)
        source.stamp = fingerprint("values", values.shape, values.dtype, np.ascontiguousarray(values), labels)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        source = Samples(recipe, data)
    else:
        raise MaemmError(f"data is {_described(data)}; give {_instead(data)}")
    source.check_first()
    return source


def path_of(data: Any, verb: str) -> str:
    """``data`` of a verb that reads files alone. Raises :class:`MaemmError` for anything that is no path."""
    if not isinstance(data, (str, os.PathLike)):
        raise MaemmError(f"data is {_described(data)}; {verb} reads files, so give a path")
    return os.fsdecode(os.fspath(data))


def _described(data: Any) -> str:
    if isinstance(data, (list, tuple)):
        kinds = sorted({type(item).__name__ for item in data})
        return f"a {type(data).__name__} of {' and '.join(kinds)}" if kinds else f"an empty {type(data).__name__}"
    name = type(data).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _instead(data: Any) -> str:
    """What to give in place of data that are refused."""
    if isinstance(data, DataLoader):
        return "its dataset (loader.dataset)"
    if isinstance(data, IterableDataset):
        return "a Dataset with __len__ and __getitem__, which can be read twice"
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, (np.ndarray, Tensor)) for item in data):
        return "one array, numpy.stack(data), or a torch Dataset"
    return ACCEPTED


def _is_pair(data: Any) -> bool:
    """Whether data are (samples, labels)."""
    if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, (np.ndarray, Tensor)) for x in data)):
        return False
    return data[0].ndim > 1 and data[1].ndim == 1 and len(data[0]) == len(data[1])


def _whole_numbers(labels: Any, count: int) -> np.ndarray:
    array = _array(labels)
    if array.dtype.kind not in "iub":
        raise MaemmError(f"labels are {array.dtype} ({count} of them); give whole numbers, -1 for a sample without one")
    return array.astype(np.int64)


def _array(values: Any) -> np.ndarray:
    """An array, or a tensor of any device and type, as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        try:
            return values.numpy()
        except TypeError:  # bfloat16
            return values.float().numpy()
    return np.asarray(values)


# ---------------------------------------------------------------------------------------------------- lists of paths
def _of_paths(recipe: Mapping[str, Any], paths: Sequence[str | os.PathLike]) -> Source:
    """The files of a list, read by the source of the recipe."""
    places = [expanded(path).absolute() for path in paths]
    for number, place in enumerate(places):
        if not place.is_file():
            reason = "is a folder; give a folder alone, as the data" if place.is_dir() else "is missing; check the path"
            raise MaemmError(f"data[{number}] {reason} ({place})")
    return _listed(recipe, places)


def _listed(recipe: Mapping[str, Any], places: Sequence[Path]) -> Source:
    with tempfile.TemporaryDirectory(prefix="maemm-") as folder:
        file = Path(folder) / "list.csv"
        with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            csv.writer(stream).writerows([["path"], *([str(place)] for place in places)])
        data = {**(recipe.get("data") or {}), "root": None, "list": str(file), "mix": None, "classes": None}
        try:
            return open_source({**recipe, "data": data})
        except MaemmError as error:
            raise MaemmError(f"a list of paths cannot be read here: {error}") from None


# --------------------------------------------------------------------------------------------- samples in the memory
class Samples(Source):
    """The items of a sequence, each read as a file with it would be.

    ``items``: an array (N, ...) or a Dataset, see :func:`source_of`. ``labels``: (N,) of the rows of an array.
    """

    def __init__(self, recipe: Mapping[str, Any], items: Any, labels: np.ndarray | None = None):
        self.items, self.labels = items, labels
        self.stamp = f"items:{uuid.uuid4().hex}"  # nothing tells whether another Dataset gives the same
        names = getattr(items, "classes", getattr(getattr(items, "dataset", None), "classes", None))  # or of a Subset
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            self.classes = list(names)
        self._modalities = {name: _FileReader(recipe, name) for name in recipe["modalities"]}

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return f"{'array' if isinstance(self.items, np.ndarray) else type(self.items).__name__}#{index}"

    def read(self, index: int, rng: Rng) -> Sample:
        values, label = self._parts(index)
        raw = {name: self._modalities[name].raw(value) for name, value in values.items() if name in self._modalities}
        return Sample(raw, self.name(index), label)

    def label(self, index: int) -> Label | None:
        return self._parts(index)[1]

    def fingerprint(self) -> str:
        return self.stamp

    def check_first(self) -> None:
        """Raises :class:`MaemmError` where there are no samples, or the first one is nothing that can be read."""
        if not len(self):
            raise MaemmError(f"data holds no samples ({_described(self.items)}); give data that are not empty")
        try:
            values, _ = self._parts(0)
            for name, reader in self._modalities.items():
                if name in values:
                    reader.check(values[name])
        except (MaemmError, MemoryError):
            raise
        except Exception as error:
            raise MaemmError(
                f"the first sample of the data cannot be read ({self.name(0)}: {reason_of(error)}); see maemm.embed "
                "for what data may be"
            ) from error

    def _parts(self, index: int) -> tuple[dict[str, Any], Label | None]:
        """({modality: array or image}, label) of one item."""
        item, label = self.items[index], None if self.labels is None else self.labels[index]
        if isinstance(item, (tuple, list)) and len(item) in (1, 2):
            item, label = item[0], item[1] if len(item) == 2 else label
        if isinstance(item, Mapping):
            label = item.get(LABEL, label)
            values = {name: item[name] for name in self._modalities if name in item}
            if not values:
                raise ValueError(f"has {', '.join(map(str, item))}, the model reads {', '.join(self._modalities)}")
        elif len(self._modalities) > 1:
            raise ValueError(f"is {_described(item)}; give a dict with {', '.join(self._modalities)}")
        else:
            values = {next(iter(self._modalities)): item}
        return {name: _value(value) for name, value in values.items()}, _label(label)


def _value(value: Any) -> Any:
    """An array or a PIL image, of what an item holds."""
    if hasattr(value, "save") and hasattr(value, "mode"):
        return value
    array = _array(value) if isinstance(value, (np.ndarray, Tensor)) else None
    if array is None or array.dtype.kind not in "biuf":
        kind = _described(value) if array is None else f"an array of {array.dtype}"
        raise ValueError(f"is {kind}, neither an array of plain numbers nor a picture")
    return array


def _label(label: Any) -> Label | None:
    if label is None:
        return None
    array = _array(label) if isinstance(label, (np.ndarray, np.generic, Tensor)) else np.asarray(label)
    if array.shape not in ((), (1,)) or array.dtype.kind not in "iub":
        raise ValueError(f"has the label {str(label)[:40]!r}; labels are whole numbers")
    number = int(array.reshape(())[()])
    return None if number < 0 else number


class _FileReader:
    """Reads an array or an image as the source of its modality reads a file with it."""

    def __init__(self, recipe: Mapping[str, Any], name: str):
        self.name, self.recipe = name, _alone(recipe, name)
        self.reads_files = True
        self._folder: tuple[int, Path] | None = None  # the process that it belongs to, and its place
        self._sources: dict[str, Source] = {}

    def raw(self, value: Any) -> Any:
        """What ``load`` of the modality takes."""
        if not self.reads_files:
            return value
        is_array = isinstance(value, np.ndarray)
        file = self._own_folder() / ("sample.npy" if is_array else "sample.tif")
        if is_array:
            np.save(file, value, allow_pickle=False)
        else:
            value.save(file)
        if file.suffix not in self._sources:
            source = _listed(self.recipe, [file])
            if len(source) != 1:
                raise ValueError(f"its source makes {len(source)} samples of a file")
            self._sources[file.suffix] = source
        (raw,) = self._sources[file.suffix].read(0, Rng(("item",))).raw.values()
        return raw

    def _own_folder(self) -> Path:
        """A temporary folder of this object in this process; a forked one does not write into that of its parent."""
        if self._folder is None or self._folder[0] != os.getpid():
            self._folder, self._sources = (os.getpid(), Path(tempfile.mkdtemp(prefix="maemm-"))), {}
            weakref.finalize(self, _remove, *self._folder)
        return self._folder[1]

    def check(self, value: Any) -> None:
        """Find out how values are read. Raises :class:`MaemmError` where they cannot be read in either way."""
        modality: Modality = build_modalities(self.recipe)[self.name]
        reasons = []
        for self.reads_files in (True, False):
            try:
                modality.load(self.raw(value), None)
                return
            except MemoryError:
                raise
            except Exception as error:
                reasons.append(reason_of(error))
        kind = f"an array {value.shape}" if isinstance(value, np.ndarray) else "a picture"
        raise MaemmError(f"a sample of the data is {kind}, which {self.name!r} cannot read ({reasons[0]}); give a path")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_folder": None, "_sources": {}}  # every process has files of its own


def _remove(process: int, folder: Path) -> None:
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _alone(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe of one modality and its own source, with the options that the recipe's source has for it."""
    spec = recipe["modalities"][name]
    owner = spec.get("same_as")
    if owner is not None:
        spec = {"type": owner, **recipe["modalities"][owner]}
    kind = spec.get("type") or name
    own, options = part_of((recipe.get("data") or {}).get("source"), default=kind)
    if own != kind:
        part = (options.get("parts") or {}).get(name) if isinstance(options.get("parts"), Mapping) else None
        own, options = part_of(part, default=kind) if kind in registry.names("sources") else (own, options)
        options = {key: value for key, value in options.items() if key not in ("root", "list")}
    if "name" in options_of(registry.find("sources", own)):
        options = {**options, "name": name}
    return {"modalities": {name: spec}, "data": {"source": {"type": own, **options}}}
