"""Tables with a header of field names and types, as in PLY and PCD files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from .pick import Reading

MOST = 10**8  # points of one cloud: more need too much memory in a worker
_COLOURS = {"red", "green", "blue", "alpha", "r", "g", "b", "diffuse_red", "diffuse_green", "diffuse_blue"}


def from_records(records: np.ndarray, options: Reading) -> np.ndarray:
    """A structured array with a number per field -> (N, columns) float64. Unsigned integer colours become 0 .. 1."""
    names = records.dtype.names or ()
    chosen = options.choose_columns(names, len(names))
    cloud = np.empty((len(records), len(chosen)))
    for at, number in enumerate(chosen):
        column = records[names[number]]
        cloud[:, at] = column
        if names[number].lower() in _COLOURS and column.dtype.kind == "u":
            cloud[:, at] /= np.iinfo(column.dtype).max
    return cloud


def check_count(count: int, room: int, least: int = 1) -> None:
    """Raise ValueError if ``count`` points of at least ``least`` bytes each do not fit into ``room`` bytes."""
    if count < 0 or count * least > room:
        raise ValueError(f"the header declares {count:,} points, but only {room:,} bytes follow: truncated or broken")
    if count > MOST:
        raise ValueError(f"{count:,} points are more than {MOST:,}; split the file")


def from_text(lines: Iterable[bytes], count: int, kind: np.dtype) -> np.ndarray:
    """``count`` lines with a number per field -> records. Raises ValueError for another number of lines or numbers."""
    names = kind.names or ()
    records = np.empty(count, kind.newbyteorder("="))
    if not count:
        return records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input contained no data"
        values = np.loadtxt(lines, comments=None, ndmin=2)
    if values.shape != (count, len(names)):
        shape = f"{values.shape[0]:,} rows of {values.shape[1]} numbers"
        raise ValueError(f"{shape} where {count:,} of {len(names)} were declared: truncated or broken")
    for name, column in zip(names, values.T, strict=True):
        records[name] = column
    return records


def from_bytes(file: BinaryIO, count: int, kind: np.dtype) -> np.ndarray:
    """``count`` binary records from the file's position. Raises ValueError if they are fewer."""
    data = file.read(count * kind.itemsize)
    if len(data) < count * kind.itemsize:
        raise ValueError(f"{len(data):,} of {count * kind.itemsize:,} bytes are there: truncated")
    return np.frombuffer(data, kind)
