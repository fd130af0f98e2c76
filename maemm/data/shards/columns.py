"""Columns of a table -> members of a sample: files as bytes, numbers as arrays; labels."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from maemm.contract import Label, Sample
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.shards.as_files import Part, read_part

LABELS = ("label", "labels", "class", "target", "fine_label", "category")
_STARTS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
    b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3", b"\xff\xf3": "mp3", b"\x1aE\xdf\xa3": "webm",
    b"\x93NUMPY": "npy", b"ply": "ply", b"FORM": "aiff",
}  # fmt: skip
_RIFF = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}


def member_of(value: Any) -> tuple[str, bytes]:
    """A value of a column -> (ending, content): bytes, ``{bytes, path}`` as `datasets` stores files, or numbers.

    Raises ValueError for anything else.
    """
    path = ""
    if isinstance(value, Mapping) and "bytes" in value:
        path, value = str(value.get("path") or ""), value["bytes"]
    if isinstance(value, bytes):
        return PurePosixPath(path).suffix.lstrip(".").lower() or ending_of(value), value
    if value is None:
        raise ValueError(f"it holds no bytes{f', only the path {path}' if path else ''}")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"values of type {type(value).__name__} are neither bytes nor numbers")
    file = io.BytesIO()
    np.save(file, array.astype(np.float32) if array.dtype == np.float64 else array, allow_pickle=False)
    return "npy", file.getvalue()


def ending_of(content: bytes) -> str:
    """The ending of a file with this content. Raises ValueError where it is of no known kind."""
    if content[:4] == b"RIFF" and content[8:12] in _RIFF:
        return _RIFF[content[8:12]]
    if content[4:8] == b"ftyp":
        return "mp4"
    ending = next((ending for start, ending in _STARTS.items() if content.startswith(start)), None)
    if ending is None:
        raise ValueError(f"bytes of no known kind (they begin with {content[:8]!r})")
    return ending


def sample_of(row: Mapping[str, Any], parts: Mapping[str, Part], name: str, label: Label | None, rng: Rng) -> Sample:
    """The sample of a row; ``parts``: {column: how it is read}. Raises whatever a source raises for such a file."""
    raw: dict[str, Any] = {}
    for column, part in parts.items():
        if row[column] is None:
            continue
        part_rng = rng if len(parts) == 1 else rng.fold_in(part.name)
        raw |= read_part(part, *member_of(row[column]), part_rng)
    if not raw:
        raise ValueError(f"it has nothing in {', '.join(parts)}")
    return Sample(raw, name, label)


def label_column(columns: Sequence[str], chosen: str | None) -> str | None:
    """The column of labels. Raises :class:`MaemmError` where ``chosen`` is none of the columns."""
    if chosen is None:
        return next((name for name in LABELS if name in columns), None)
    if chosen not in columns:
        raise MaemmError(f"there is no column {chosen!r} (data.source.label); there are {', '.join(columns)}")
    return chosen


def label_of(value: Any, numbers: Mapping[str, int] | None) -> Label | None:
    """A value of the column of labels -> label. ``numbers``: {name of a class: number}. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_number_of(item, numbers) for item in value)
    if isinstance(value, float) and math.isnan(value):  # what tables make of whole numbers where some are missing
        return None
    number = _number_of(value, numbers)
    return None if number < 0 else number


def _number_of(value: Any, numbers: Mapping[str, int] | None) -> int:
    if isinstance(value, str):
        if numbers is None or value not in numbers:
            raise ValueError(f"its label {value!r} is none of the classes")
        return numbers[value]
    if value is None or int(value) != value:
        raise ValueError(f"its label {value!r} is no whole number")
    return int(value)


def column_for(part: Part, column: str | None, columns: Sequence[str], *, alone: bool, label: str | None) -> str:
    """The column that a part reads: the chosen one, or the one with its name, or the only one that is no label.

    Raises :class:`MaemmError`.
    """
    others = [name for name in columns if name != label]
    chosen = column or (part.name if part.name in columns else others[0] if alone and len(others) == 1 else None)
    if chosen is None or chosen not in columns:
        missing = f"there is no column {column!r}" if column else f"no column is called {part.name!r}"
        raise MaemmError(f"{missing} (data.source.columns); choose from {', '.join(columns)}")
    return chosen
