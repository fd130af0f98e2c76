"""LAS and LAZ files (airborne lidar) with laspy."""

from __future__ import annotations

import os

import laspy
import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading
from .records import MOST, check_count

_LEAST = 20  # bytes of the smallest point record
_LARGE = 2**28  # bytes; larger files may really need more memory than there is
_AT_ONCE = 10**6  # points decoded at a time, so that a wrong count in the header costs no memory
_COLOURS = ("red", "green", "blue")
_BLOCKS = {"variable length records": (94, 100, 54), "extended variable length records": (235, 243, 60)}


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """(N, C) float64: x y z in the file's units, then its other dimensions in order; colours in 0 .. 1."""
    _check_header(path)
    try:
        with laspy.open(path) as file:
            count = file.header.point_count
            names = ["x", "y", "z", *(n for n in file.header.point_format.dimension_names if n not in ("X", "Y", "Z"))]
            compressed = file.header.are_points_compressed
            check_count(count, MOST if compressed else os.path.getsize(path), 1 if compressed else _LEAST)
            chosen = [names[i] for i in options.choose_columns(names, len(names))]
            parts = [_columns(chunk, chosen) for chunk in file.chunk_iterator(_AT_ONCE)]
    except (OSError, ValueError, KeyboardInterrupt):
        raise
    except MemoryError:
        if os.path.getsize(path) > _LARGE:
            raise
        raise ValueError("a number in the LAS header needs more memory than there is: broken") from None
    except BaseException as error:  # laspy's, struct's, and panics of lazrs, which do not derive from Exception
        raise ValueError(f"laspy cannot read it ({' '.join(str(error).split())})") from None
    cloud = np.concatenate(parts) if parts else np.empty((0, len(chosen)))
    if len(cloud) != count:
        raise ValueError(f"the header declares {count:,} points, {len(cloud):,} are there: truncated")
    return cloud


def _check_header(path: str) -> None:
    """Refuse a header that declares more records than fit into the file: laspy would search for them for minutes.

    ``_BLOCKS`` has offsets of the LAS 1.4 specification (R15), table 3: of the start of the records and their number;
    then the smallest size of a record in bytes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(375)
    if len(header) < 227:
        raise ValueError("the LAS header is truncated")
    for records, (start, number, least) in _BLOCKS.items():
        if start == 235 and (header[25] < 4 or len(header) < 375):
            continue
        begin = int.from_bytes(header[start : start + (8 if start == 235 else 2)], "little")
        count = int.from_bytes(header[number : number + 4], "little")
        if count and begin + count * least > size:
            raise ValueError(f"the LAS header declares {count:,} {records}, more than fit into the file")

    if header[104] & 128:
        _check_chunks(path, size, int.from_bytes(header[96:100], "little"))


def _check_chunks(path: str, size: int, start: int) -> None:
    """Refuse an impossible chunk table: lazrs aborts the process if there is no memory for it.

    Compressed points begin with the table's offset, or with -1 if the offset is the last number of the file. Each chunk
    has at least one uncompressed point.
    """
    with open(path, "rb") as file:
        file.seek(start)
        at = int.from_bytes(file.read(8), "little", signed=True)
        if at == -1 and size > 8:
            file.seek(-8, os.SEEK_END)
            at = int.from_bytes(file.read(8), "little", signed=True)
        if not start < at <= size - 8:
            raise ValueError("the LAZ file has no chunk table: truncated or broken")
        file.seek(at + 4)
        count = int.from_bytes(file.read(4), "little")
    if count * _LEAST > size:
        raise ValueError(f"the LAZ file declares {count:,} chunks, more than fit into it")


def _columns(chunk: laspy.ScaleAwarePointRecord, names: list[str]) -> np.ndarray:
    columns = [np.asarray(chunk[name], np.float64) / (65535 if name in _COLOURS else 1) for name in names]
    return np.stack(columns, axis=1)
