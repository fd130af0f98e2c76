"""LAS and LAZ (surveys from the air) through laspy."""

from __future__ import annotations

import os

import laspy
import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading
from .records import MOST, check_count

_LEAST = 20  # bytes of the smallest point record
_LARGE = 2**28  # bytes of a file that may well need more memory than there is
_AT_ONCE = 10**6  # points decoded at a time, so that a false header costs no memory
_COLOURS = ("red", "green", "blue")
_BLOCKS = {"variable length records": (94, 100, 54), "extended variable length records": (235, 243, 60)}


def read(path: str, how: Reading, rng: Rng) -> np.ndarray:
    """(N, C) float64: x y z in the file's units, then its other dimensions in their order; colours as 0 .. 1."""
    _check_header(path)
    try:
        with laspy.open(path) as file:
            count = file.header.point_count
            names = ["x", "y", "z", *(n for n in file.header.point_format.dimension_names if n not in ("X", "Y", "Z"))]
            compressed = file.header.are_points_compressed
            check_count(count, MOST if compressed else os.path.getsize(path), 1 if compressed else _LEAST)
            taken = [names[i] for i in how.pick(names, len(names))]
            parts = [_columns(chunk, taken) for chunk in file.chunk_iterator(_AT_ONCE)]
    except (OSError, ValueError, KeyboardInterrupt):
        raise
    except MemoryError:
        if os.path.getsize(path) > _LARGE:
            raise
        raise ValueError("a number in the LAS header asks for more memory than there is: broken") from None
    except BaseException as error:  # laspy's, struct's, and panics of lazrs, which are no Exception
        raise ValueError(f"laspy cannot read it ({' '.join(str(error).split())})") from None
    cloud = np.concatenate(parts) if parts else np.empty((0, len(taken)))
    if len(cloud) != count:
        raise ValueError(f"the header promises {count:,} points, {len(cloud):,} are there: cut off")
    return cloud


def _check_header(path: str) -> None:
    """Refuse a header that promises more records than the file has room for: laspy would look for them for minutes.

    Offsets of the LAS 1.4 specification (R15), table 3: of where the records begin, of their number; bytes of each.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(375)
    if len(header) < 227:
        raise ValueError("the LAS header is cut off")
    for what, (start, number, least) in _BLOCKS.items():
        if start == 235 and (header[25] < 4 or len(header) < 375):
            continue
        begin = int.from_bytes(header[start : start + (8 if start == 235 else 2)], "little")
        count = int.from_bytes(header[number : number + 4], "little")
        if count and begin + count * least > size:
            raise ValueError(f"the LAS header promises {count:,} {what}, for which the file has no room")

    if header[104] & 128:
        _check_chunks(path, size, int.from_bytes(header[96:100], "little"))


def _check_chunks(path: str, size: int, start: int) -> None:
    """Refuse a table of chunks that cannot be: lazrs ends the whole process when there is no memory for it.

    Compressed points begin with the table's offset, or -1: then it is the last number of the file. Each chunk holds
    at least one whole point.
    """
    with open(path, "rb") as file:
        file.seek(start)
        at = int.from_bytes(file.read(8), "little", signed=True)
        if at == -1 and size > 8:
            file.seek(-8, os.SEEK_END)
            at = int.from_bytes(file.read(8), "little", signed=True)
        if not start < at <= size - 8:
            raise ValueError("the LAZ file has no table of chunks: cut off or broken")
        file.seek(at + 4)
        count = int.from_bytes(file.read(4), "little")
    if count * _LEAST > size:
        raise ValueError(f"the LAZ file promises {count:,} chunks, for which it has no room")


def _columns(chunk: laspy.ScaleAwarePointRecord, names: list[str]) -> np.ndarray:
    columns = [np.asarray(chunk[name], np.float64) / (65535 if name in _COLOURS else 1) for name in names]
    return np.stack(columns, axis=1)
