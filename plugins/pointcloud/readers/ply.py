"""PLY (Stanford): vertices with all their properties by our own reader; surfaces of meshes with trimesh.

trimesh is optional, and the PLY sample set must not need it; it also ignores most properties, and returns part of a
truncated ASCII file without an error.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading
from .records import check_count, from_bytes, from_records, from_text

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEAD = 2**16  # largest size of a header in bytes


@dataclass
class _Element:
    name: str
    count: int
    fields: list[tuple[str, str]] = field(default_factory=list)  # name, type
    lists: bool = False


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """(N, C): the vertices with all their properties; of a mesh, points on its surface unless ``surface`` is False."""
    with open(path, "rb") as file:
        order, elements = _header(file)
        faces = next((element.count for element in elements if element.name == "face"), 0)
        if options.surface or (options.surface is None and faces > 0):
            for element in elements:
                check_count(element.count, os.path.getsize(path))
            from . import mesh

            return mesh.read(path, options, rng)
        return from_records(_vertices(file, order, elements, os.path.getsize(path)), options)


def _header(file: BinaryIO) -> tuple[str, list[_Element]]:
    """(byte order, elements); leaves the file at the start of the data. Raises ValueError."""
    order = ""
    elements: list[_Element] = []
    lines = iter(file.readline, b"")
    if next(lines, b"").strip() != b"ply":
        raise ValueError("not a PLY file: it does not begin with 'ply'")
    for line in lines:
        words = line.decode("ascii", "replace").split()
        if file.tell() > _HEAD:
            break
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words == ["end_header"]:
            if not order:
                raise ValueError("the PLY header names no format")
            return order, elements
        try:
            if words[0] == "format":
                order = _ORDERS[words[1]]
            else:
                _add_line(words, elements)
        except (IndexError, KeyError, ValueError):
            raise ValueError(f"odd line in the PLY header: {' '.join(words)[:60]!r}") from None
    raise ValueError("the PLY header has no end")


def _add_line(words: list[str], elements: list[_Element]) -> None:
    """One line of the header, of an element or a property."""
    if words[0] == "element":
        elements.append(_Element(words[1], int(words[2])))
    elif words[0] == "property" and words[1] == "list":
        elements[-1].lists = True
    elif words[0] == "property":
        elements[-1].fields.append((words[2], _TYPES[words[1]]))
    else:
        raise ValueError


def _vertices(file: BinaryIO, order: str, elements: list[_Element], size: int) -> np.ndarray:
    """The records of the element ``vertex``."""
    at = next((i for i, element in enumerate(elements) if element.name == "vertex"), None)
    if at is None:
        raise ValueError("the PLY file has no vertices")
    before, vertex = elements[:at], elements[at]
    if vertex.lists or any(element.lists for element in before):
        raise ValueError("the PLY file has lists before or in its vertices, which is not supported")
    types = [np.dtype([(name, order + kind) for name, kind in element.fields]) for element in (*before, vertex)]
    room = size - file.tell()
    if order == "=":
        check_count(vertex.count, room, 2 * len(vertex.fields))
        skip = sum(element.count for element in before)
        return from_text(itertools.islice(file, skip, skip + vertex.count), vertex.count, types[-1])
    skip = sum(element.count * kind.itemsize for element, kind in zip(before, types[:-1], strict=True))
    check_count(vertex.count, room - skip, types[-1].itemsize)
    file.seek(skip, os.SEEK_CUR)
    return from_bytes(file, vertex.count, types[-1])
