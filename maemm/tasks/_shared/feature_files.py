"""Feature files: .npz, .safetensors and .parquet, with ids, labels and the names of the classes.

Arrays: one by modality (n, D) or (n, N, D) float32; ``ids`` (n,), ``labels`` (n,) int64 or -1, or (n, classes) int8
of 0 and 1 where samples may have several, -1 for none; ``digests`` (n,) int64 of the content; ``NAME.valid`` (n, N)
where samples differ in their number of tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions
from maemm.tasks._shared.features import Features, joined_labels

ENDINGS = (".npz", ".safetensors", ".parquet")
_ROWS = ("ids", "labels", "digests")  # what is no modality and has a row for each sample
_BESIDE = (*_ROWS, "classes", "about", "skipped")


def is_features(name: str) -> bool:
    """Whether an array of that name holds features."""
    return name not in _BESIDE and not name.endswith(".valid")


def arrays_of(found: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """Features of the same samples -> the arrays of a file."""
    one = next(iter(found.values()))
    arrays = {name: some.x for name, some in found.items() if name}
    arrays |= {f"{name}.valid": some.valid for name, some in found.items() if some.valid is not None}
    ids = np.array(one.ids, dtype=str) if one.ids else np.zeros(0, "U1")
    return {**arrays, "ids": ids, "labels": one.labels, "digests": one.digests}


def concatenated(chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Arrays of chunks one after the other; token features are padded to the longest. Empty where there are no rows.

    ``chunks()`` is gone through twice, so that one of them is in memory beside what comes out. Raises
    :class:`MaemmError` where features differ in width.
    """
    small: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}
    ragged: set[str] = set()
    for chunk in _filled(chunks()):
        for name in chunk:
            if name in _ROWS:
                small.setdefault(name, []).append(chunk[name])
            elif name.endswith(".valid"):
                ragged.add(name.removesuffix(".valid"))
            elif is_features(name):
                shapes.setdefault(name, []).append(chunk[name].shape)
    found = {name: joined_labels(some) if name == "labels" else np.concatenate(some) for name, some in small.items()}
    for name, some in sorted(shapes.items()):
        found |= _joined(name, some, chunks, name in ragged)
    return found


def _filled(chunks: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    return (one for one in chunks if len(one["ids"]))


def _joined(
    name: str, shapes: list[tuple[int, ...]], chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]], ragged: bool
) -> dict[str, np.ndarray]:
    widths = sorted({shape[-1] for shape in shapes})
    if len(widths) > 1:
        raise MaemmError(f"features of {name!r} differ in width ({widths[0]} to {widths[-1]}); they are no table")
    rows, lengths = sum(shape[0] for shape in shapes), {shape[1:-1] for shape in shapes}
    x = np.zeros((rows, *max(lengths), widths[0]), np.float32)
    ragged = ragged or len(lengths) > 1
    valid, at = np.zeros(x.shape[:2] if ragged else 0, bool), 0
    for chunk in _filled(chunks()):
        part = chunk[name]
        place = (slice(at, at + len(part)), *(slice(n) for n in part.shape[1:-1]))
        x[place] = part
        if ragged:
            valid[place] = chunk.get(f"{name}.valid", True)
        at += len(part)
    return {name: x, f"{name}.valid": valid} if ragged else {name: x}


# --------------------------------------------------------------------------------------------------- writing
def check_target(out: Path) -> None:
    """Raises :class:`MaemmError` for a file that exists, an ending of no known kind, and a missing package."""
    if out.suffix not in ENDINGS:
        raise MaemmError(f"{out} has no known ending; write to a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    if out.exists():
        raise MaemmError(f"{out} exists; choose another name or remove it")
    if out.suffix == ".parquet":
        _pyarrow()


def write(out: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]) -> None:
    """Write beside ``out`` and rename. ``about``: what the features depend on."""
    writer = {".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}[out.suffix]
    beside = out.with_name(f".{out.name}.tmp")
    try:
        writer(beside, arrays, classes, about)
        os.replace(beside, out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MaemmError(
            f"cannot write {out} ({error.strerror or error}); free space: the same command goes on"
        ) from error


def _npz(path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]) -> None:
    more = {"about": np.array(json.dumps(about))}
    if classes is not None:
        more["classes"] = np.array(classes, dtype=str)
    with path.open("wb") as file:
        np.savez(file, **arrays, **more)


def _safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]
) -> None:
    from safetensors.numpy import save_file

    numbers = {name: np.ascontiguousarray(value) for name, value in arrays.items() if name != "ids"}
    header = {"ids": json.dumps(arrays["ids"].tolist()), "about": json.dumps(about)}
    if classes is not None:
        header["classes"] = json.dumps(classes)
    save_file(numbers, path, metadata=header)
    usual_permissions(path)


def _parquet(path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]) -> None:
    """A row per sample; features are lists of fixed length, tokens one after the other (shape in the metadata)."""
    pa, pq = _pyarrow()
    columns: dict[str, Any] = {"id": pa.array(arrays["ids"].tolist(), pa.string())}
    multilabel = arrays["labels"].ndim == 2
    if multilabel:
        rows = [None if row[0] < 0 else np.flatnonzero(row).tolist() for row in arrays["labels"]]
        columns["labels"] = pa.array(rows, pa.list_(pa.int64()))
    else:
        columns["label"] = pa.array(arrays["labels"], mask=arrays["labels"] < 0)
    if classes is not None and not multilabel:
        columns["class"] = pa.array([classes[i] if 0 <= i < len(classes) else None for i in arrays["labels"]])
    shapes = {}
    for name, value in arrays.items():
        if name in ("ids", "labels"):
            continue
        flat = value.reshape(len(value), -1)
        shapes[name] = value.shape[1:]
        wide = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        columns[name] = wide if value.ndim > 1 else pa.array(value)
    table = pa.table(columns).replace_schema_metadata({"maemm": json.dumps({**about, "shapes": shapes})})
    pq.write_table(table, path)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MaemmError(".parquet needs the package 'pyarrow'; run: pip install 'maemm[parquet]'") from error
    return pyarrow, parquet
