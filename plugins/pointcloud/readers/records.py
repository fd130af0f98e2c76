"""Tables whose header names the fields and their types, as PLY and PCD have them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from .pick import Reading

MOST = 10**8  # points of one cloud: more do not fit into a worker's memory as they are read
_COLOURS = {"red", "green", "blue", "alpha", "r", "g", "b", "diffuse_red", "diffuse_green", "diffuse_blue"}


def from_records(records: np.ndarray, how: Reading) -> np.ndarray:
    """A structured array with a number in each field -> (N, columns) float64. Whole-number colours become 0 .. 1."""
    names = records.dtype.names or ()
    taken = how.pick(names, len(names))
    cloud = np.empty((len(records), len(taken)))
    for at, number in enumerate(taken):
        column = records[names[number]]
        cloud[:, at] = column
        if names[number].lower() in _COLOURS and column.dtype.kind == "u":
            cloud[:, at] /= np.iinfo(column.dtype).max
    return cloud


def check_count(count: int, room: int, least: int = 1) -> None:
    """Refuse a header that promises more points than ``room`` bytes of at least ``least`` each can hold."""
    if count < 0 or count * least > room:
        raise ValueError(f"the header promises {count:,} points, but only {room:,} bytes follow: cut off or broken")
    if count > MOST:
        raise ValueError(f"{count:,} points are more than {MOST:,}; split the file")


def from_text(lines: Iterable[bytes], count: int, kind: np.dtype) -> np.ndarray:
    """``count`` lines with a number for each field -> records. Raises ValueError where they are fewer."""
    names = kind.names or ()
    records = np.empty(count, kind.newbyteorder("="))
    if not count:
        return records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input contained no data"
        values = np.loadtxt(lines, comments=None, ndmin=2)
    if values.shape != (count, len(names)):
        shape = f"{values.shape[0]:,} rows of {values.shape[1]} numbers"
        raise ValueError(f"{shape} where {count:,} of {len(names)} were promised: cut off or broken")
    for name, column in zip(names, values.T, strict=True):
        records[name] = column
    return records


def from_bytes(file: BinaryIO, count: int, kind: np.dtype) -> np.ndarray:
    """``count`` binary records from where the file stands."""
    data = file.read(count * kind.itemsize)
    if len(data) < count * kind.itemsize:
        raise ValueError(f"{len(data):,} of {count * kind.itemsize:,} bytes are there: cut off")
    return np.frombuffer(data, kind)
