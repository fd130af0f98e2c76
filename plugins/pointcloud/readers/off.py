"""OFF meshes. Our own reader, because others silently accept files with wrong counts."""

from __future__ import annotations

import os

import numpy as np

from .records import check_count

_Row = tuple[int, list[str]]  # line number, words


def read_off(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and triangles (F, 3); polygons become triangle fans around their first vertex.

    ``OFF`` may be on one line with the counts, as in many ModelNet40 files. Raises ValueError with the line's number.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = [(number, words) for number, line in enumerate(file, 1) if (words := line.split("#")[0].split())]
    vertices, faces, rows = _counts(rows, os.path.getsize(path))
    if len(rows) < vertices + faces:
        raise ValueError(f"{vertices} vertices and {faces} faces are declared, {len(rows)} lines follow: truncated")
    points = np.array([_vertex(row) for row in rows[:vertices]], np.float64).reshape(-1, 3)
    triangles = [triangle for row in rows[vertices : vertices + faces] for triangle in _triangles(row, vertices)]
    return points, np.array(triangles, np.int64).reshape(-1, 3)


def _counts(rows: list[_Row], size: int) -> tuple[int, int, list[_Row]]:
    """(vertices, faces, the lines after the counts)."""
    first = " ".join(rows[0][1]) if rows else ""
    at = first.upper().find("OFF")
    if not 0 <= at <= 4:  # COFF, NOFF, STOFF: more numbers after x y z
        raise ValueError("not an OFF file: it does not begin with 'OFF'")
    words, rest = first[at + 3 :].split(), rows[1:]
    if not words and rest:
        words, rest = rest[0][1], rest[1:]
    try:
        vertices, faces = int(words[0]), int(words[1])
    except (IndexError, ValueError):
        raise ValueError("the OFF header does not say how many vertices and faces there are") from None
    check_count(vertices, size, 2)
    check_count(faces, size, 2)
    return vertices, faces, rest


def _vertex(row: _Row) -> list[float]:
    number, words = row
    try:
        x, y, z = (float(word) for word in words[:3])
    except ValueError:
        raise ValueError(f"line {number}: a vertex needs 3 numbers") from None
    return [x, y, z]


def _triangles(row: _Row, vertices: int) -> list[tuple[int, int, int]]:
    number, words = row
    try:
        count = int(words[0])
        corners = [int(word) for word in words[1 : 1 + count]]
        if count < 1 or len(corners) < count:
            raise ValueError
    except ValueError:
        raise ValueError(f"line {number}: no face, where one was declared") from None
    if any(not 0 <= corner < vertices for corner in corners):
        raise ValueError(f"line {number}: a face with a vertex outside the {vertices} vertices")
    return [(corners[0], b, c) for b, c in zip(corners[1:-1], corners[2:], strict=True)]
