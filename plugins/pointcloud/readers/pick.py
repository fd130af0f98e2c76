"""Options of all readers: the columns to use, and what to do with meshes and NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Reading:
    """How a file becomes a cloud; the fields are options of the source of the same names."""

    columns: tuple[str | int, ...] | None = None  # names or numbers from 0, in order; None: x y z, then the others
    surface: bool | None = None  # sample the surface of meshes; None: if there are faces; False: use the vertices
    mesh_points: int = 8192  # points sampled on the surface of a mesh
    nonfinite: Literal["refuse", "drop"] = "refuse"  # points with NaN or infinity

    def choose_columns(self, names: Sequence[str] | None, count: int) -> list[int]:
        """Indices of the columns to use, of a table with ``count`` columns, with ``names`` or without.

        Raises ValueError for a column that the table does not have.
        """
        lower = [] if names is None else [name.strip().strip("\"'").lower() for name in names]
        if self.columns is None:
            if not {"x", "y", "z"} <= set(lower):
                return list(range(count))
            first = [lower.index(axis) for axis in "xyz"]
            return first + [i for i in range(count) if i not in first]
        return [_column_index(column, lower, count) for column in self.columns]

    def drop_nonfinite(self, cloud: np.ndarray) -> np.ndarray:
        """The cloud, with ``nonfinite: drop`` without the points that have NaN or infinity."""
        if self.nonfinite == "refuse" or cloud.ndim != 2 or cloud.dtype.kind != "f":
            return cloud
        finite = np.isfinite(cloud).all(1)
        return cloud if finite.all() else cloud[finite]


def _column_index(column: str | int, names: list[str], count: int) -> int:
    if isinstance(column, int):
        if not 0 <= column < count:
            raise ValueError(f"no column {column}; the file has {count}, counted from 0 (data.source.columns)")
        return column
    if column.lower() not in names:
        columns = ", ".join(names) if names else f"{count} without names"
        raise ValueError(f"no column {column!r}; the file has {columns} (data.source.columns)")
    return names.index(column.lower())
