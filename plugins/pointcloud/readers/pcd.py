"""PCD (Point Cloud Library): ascii, binary and binary_compressed, with any fields.

Our own reader: no other dependency reads PCD; pypcd4 (1.5) returns part of a truncated file without an error, and
Open3D has hundreds of megabytes.
"""

from __future__ import annotations

import itertools
import os
from typing import BinaryIO

import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading
from .records import check_count, from_bytes, from_records, from_text

_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
_KINDS = {"F": "f", "I": "i", "U": "u"}
_HEAD = 2**16  # largest size of a header in bytes


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """(N, C): all fields, with a column for each number of a field and each channel of a packed colour.

    Raises ValueError.
    """
    with open(path, "rb") as file:
        header = _header(file)
        kind, count = _fields(header), _count(header)
        room = os.path.getsize(path) - file.tell()
        stored = header["DATA"][0].lower()
        if stored == "ascii":
            check_count(count, room, 2 * len(kind.names or ()))
            records = from_text(itertools.islice(file, count), count, kind)
        elif stored == "binary":
            check_count(count, room, kind.itemsize)
            records = from_bytes(file, count, kind)
        elif stored == "binary_compressed":
            records = _compressed(file, count, kind, room)
        else:
            raise ValueError(f"unknown PCD data {stored[:30]!r}")
    return from_records(_unpack_colours(records), options)


def _header(file: BinaryIO) -> dict[str, list[str]]:
    """{key: words}; leaves the file at the start of the data. Raises ValueError."""
    header: dict[str, list[str]] = {}
    for line in iter(file.readline, b""):
        words = line.split(b"#")[0].decode("ascii", "replace").split()
        if file.tell() > _HEAD:
            break
        if not words:
            continue
        if words[0] not in _KEYS or len(words) < 2:
            raise ValueError(f"odd line in the PCD header: {' '.join(words)[:60]!r}")
        header[words[0]] = words[1:]
        if words[0] == "DATA":
            return header
    raise ValueError("the PCD header has no end")


def _fields(header: dict[str, list[str]]) -> np.dtype:
    """The dtype of a record. Padding, fields called "_", gets unique names."""
    try:
        names, sizes, kinds = header["FIELDS"], header["SIZE"], header["TYPE"]
        counts = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
        fields: list[tuple[str, str]] = []
        for name, size, kind, count in zip(names, sizes, kinds, counts, strict=True):
            code = f"<{_KINDS[kind]}{int(size)}"
            single = count == 1 and name != "_"
            fields += [(name if single else f"{name}_{len(fields)}", code) for _ in range(count)]
            if len(fields) > 1000:
                raise ValueError
        return np.dtype(fields)
    except (KeyError, ValueError, TypeError):
        raise ValueError("the PCD header's FIELDS, SIZE, TYPE and COUNT do not fit together") from None


def _unpack_colours(records: np.ndarray) -> np.ndarray:
    """Replace PCL's packed colour, the four bytes of one number (often declared as float), by red, green and blue."""
    names, kind = records.dtype.names or (), records.dtype
    packed = next((name for name in names if name.lower() in ("rgb", "rgba") and kind[name].itemsize == 4), None)
    if packed is None:
        return records
    bits = np.ascontiguousarray(records[packed]).view("u4")
    columns = {name: records[name] for name in names if name != packed}
    columns |= {name: (bits >> shift & 255).astype("u1") for name, shift in (("red", 16), ("green", 8), ("blue", 0))}
    unpacked = np.empty(len(records), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        unpacked[name] = column
    return unpacked


def _count(header: dict[str, list[str]]) -> int:
    try:
        if "POINTS" in header:
            return int(header["POINTS"][0])
        return int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    except (KeyError, ValueError):
        raise ValueError("the PCD header does not say how many points there are") from None


def _compressed(file: BinaryIO, count: int, kind: np.dtype, room: int) -> np.ndarray:
    """Two sizes, then all numbers of the first field, of the second, and so on, compressed with LZF."""
    sizes = np.frombuffer(file.read(8), "<u4")
    if len(sizes) < 2 or sizes[0] > room - 8:
        raise ValueError("the compressed data are truncated")
    if count * kind.itemsize != int(sizes[1]):
        raise ValueError(f"{count:,} points of {kind.itemsize} bytes do not make {int(sizes[1]):,} bytes")
    check_count(count, 300 * room)  # LZF compresses at most 264 bytes into 3
    data = unpack_lzf(file.read(int(sizes[0])), int(sizes[1]))
    records, at = np.empty(count, kind), 0
    for name in kind.names or ():
        code = kind[name]
        records[name] = np.frombuffer(data, code, count, at)
        at += count * code.itemsize
    return records


def unpack_lzf(data: bytes, size: int) -> bytes:
    """Decompress LZF (liblzf's format): literal bytes, and copies of earlier output. Raises ValueError if it is broken.

    A control byte c < 32 is followed by c + 1 literal bytes. Others are copies: the upper three bits are length - 2
    (for 7, the next byte is added), the lower five are the high bits of distance - 1, whose low byte follows.
    """
    out, at, end = bytearray(), 0, len(data)
    while at < end and len(out) <= size:
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7 and at < end:
            length += data[at]
            at += 1
        if at >= end:
            break
        start = len(out) - ((control & 31) << 8) - data[at] - 1
        at += 1
        if start < 0:
            raise ValueError("the compressed data are broken")
        length += 2
        piece = out[start : start + length]
        while len(piece) < length:  # the copy overlaps its own output
            piece += piece[: length - len(piece)]
        out += piece
    if len(out) != size or at > end:
        raise ValueError(f"the compressed data give {len(out):,} of {size:,} bytes: truncated or broken")
    return bytes(out)
