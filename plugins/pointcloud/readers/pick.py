"""What all readers are told: which columns of a file are taken, and what becomes of meshes and of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Reading:
    """How a file becomes a cloud; the fields are options of the source."""

    columns: tuple[str | int, ...] | None = None  # names or numbers from 0, in order; None: x y z, then the others
    surface: bool | None = None  # points on the surface of meshes; None: where there are faces; False: corners
    mesh_points: int = 8192  # points drawn on the surface of a mesh
    nonfinite: Literal["refuse", "drop"] = "refuse"  # points with NaN or infinity

    def pick(self, names: Sequence[str] | None, count: int) -> list[int]:
        """Numbers of the columns to take, of a table with ``count`` columns that has ``names`` or none.

        Raises ValueError where a column that was asked for is not there.
        """
        lower = [] if names is None else [name.strip().strip("\"'").lower() for name in names]
        if self.columns is None:
            if not {"x", "y", "z"} <= set(lower):
                return list(range(count))
            first = [lower.index(axis) for axis in "xyz"]
            return first + [i for i in range(count) if i not in first]
        return [self._one(column, lower, count) for column in self.columns]

    def _one(self, column: str | int, names: list[str], count: int) -> int:
        if isinstance(column, int):
            if not 0 <= column < count:
                raise ValueError(f"no column {column}; the file has {count}, counted from 0 (data.source.columns)")
            return column
        if column.lower() not in names:
            has = ", ".join(names) if names else f"{count} without names"
            raise ValueError(f"no column {column!r}; the file has {has} (data.source.columns)")
        return names.index(column.lower())

    def finite(self, cloud: np.ndarray) -> np.ndarray:
        """The cloud without its not-finite points, if they are to be dropped."""
        if self.nonfinite == "refuse" or cloud.ndim != 2 or cloud.dtype.kind != "f":
            return cloud
        good = np.isfinite(cloud).all(1)
        return cloud if good.all() else cloud[good]
