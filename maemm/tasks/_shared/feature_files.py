"""Feature files: .npz, .safetensors and .parquet, with ids, labels and the names of the classes.

Arrays: one for each modality, (n, D) or (n, N, D) float32; ``ids`` (n,); ``labels`` (n,) int64, -1 for none, or
multi-label (n, classes) int8 of 0 and 1, -1 for a sample without labels; ``digests`` (n,) int64 of the content;
``NAME.valid`` (n, N) where samples differ in their number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions, write_whole
from maemm.tasks._shared.features import Features, concatenate_labels

ADVICE = "free space: the same command continues"  # where a file cannot be written
ENDINGS = (".npz", ".safetensors", ".parquet")
_PER_SAMPLE = ("ids", "labels", "digests")  # arrays with a row for each sample that are no modality
_NO_FEATURES = (*_PER_SAMPLE, "classes", "about", "skipped")


def is_features(name: str) -> bool:
    """Whether the array ``name`` holds the features of a modality."""
    return name not in _NO_FEATURES and not name.endswith(".valid")


def arrays_of(by_modality: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """Features of the same samples, all with digests -> the arrays of a file."""
    first = next(iter(by_modality.values()))
    assert first.digests is not None
    arrays = {name: features.x for name, features in by_modality.items() if name}
    arrays |= {f"{name}.valid": part.valid for name, part in by_modality.items() if part.valid is not None}
    ids = np.array(first.ids, dtype=str) if first.ids else np.zeros(0, "U1")
    return {**arrays, "ids": ids, "labels": first.labels, "digests": first.digests}


def concatenated(chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The arrays of chunks one after the other; token features are padded to the longest. Empty without rows.

    ``chunks()`` is iterated once for the small arrays and once for each modality, so that the result and a single chunk
    are in memory. Raises :class:`MaemmError` where features differ in width.
    """
    small: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}
    ragged: set[str] = set()
    for chunk in _filled(chunks()):
        for name in chunk:
            if name in _PER_SAMPLE:
                small.setdefault(name, []).append(chunk[name])
            elif name.endswith(".valid"):
                ragged.add(name.removesuffix(".valid"))
            elif is_features(name):
                shapes.setdefault(name, []).append(chunk[name].shape)
    arrays = {
        name: concatenate_labels(parts) if name == "labels" else np.concatenate(parts) for name, parts in small.items()
    }
    for name, own in sorted(shapes.items()):
        arrays |= _concatenate_features(name, own, chunks, name in ragged)
    return arrays


def _filled(chunks: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    return (chunk for chunk in chunks if len(chunk["ids"]))


def _concatenate_features(
    name: str, shapes: list[tuple[int, ...]], chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]], ragged: bool
) -> dict[str, np.ndarray]:
    """The features of one modality and, where samples differ in length, their validity."""
    widths = sorted({shape[-1] for shape in shapes})
    if len(widths) > 1:
        raise MaemmError(f"features of {name!r} differ in width ({widths[0]} to {widths[-1]}); they are no table")
    rows, lengths = sum(shape[0] for shape in shapes), {shape[1:-1] for shape in shapes}
    x = np.zeros((rows, *max(lengths), widths[0]), np.float32)
    ragged = ragged or len(lengths) > 1
    valid, start = np.zeros(x.shape[:2] if ragged else 0, bool), 0
    for chunk in _filled(chunks()):
        part = chunk[name]
        target = (slice(start, start + len(part)), *(slice(n) for n in part.shape[1:-1]))
        x[target] = part
        if ragged:
            valid[target] = chunk.get(f"{name}.valid", True)
        start += len(part)
    return {name: x, f"{name}.valid": valid} if ragged else {name: x}


# --------------------------------------------------------------------------------------------------- writing
def check_target(out: Path) -> None:
    """Raises :class:`MaemmError` for an unknown ending, a file that exists, and a missing package."""
    if out.suffix not in ENDINGS:
        raise MaemmError(f"{out} has no known ending; write to a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    if out.exists():
        raise MaemmError(f"{out} exists; choose another name or remove it")
    if out.suffix == ".parquet":
        _pyarrow()


def write(out: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]) -> None:
    """Write a feature file as a whole or not at all. ``about``: what the features depend on.

    Raises :class:`MaemmError` where it cannot be written.
    """
    writer = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}[out.suffix]
    write_whole(out, lambda file: writer(file, arrays, classes, about), "the features", advice=ADVICE)


def save_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """:func:`numpy.savez` of arrays by name."""
    np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle


def _write_npz(
    path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]
) -> None:
    texts = {"about": np.array(json.dumps(about))}
    if classes is not None:
        texts["classes"] = np.array(classes, dtype=str)
    with path.open("wb") as file:
        save_npz(file, {**arrays, **texts})


def _write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]
) -> None:
    from safetensors.numpy import save_file

    numbers = {name: np.ascontiguousarray(value) for name, value in arrays.items() if name != "ids"}
    header = {"ids": json.dumps(arrays["ids"].tolist()), "about": json.dumps(about)}
    if classes is not None:
        header["classes"] = json.dumps(classes)
    save_file(numbers, path, metadata=header)
    usual_permissions(path)


def _write_parquet(
    path: Path, arrays: Mapping[str, np.ndarray], classes: list[str] | None, about: Mapping[str, Any]
) -> None:
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
