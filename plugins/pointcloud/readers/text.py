"""Tables of numbers as text: .xyz, .txt, .csv, .pts, .asc; with commas, semicolons, tabs or blanks between them."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading
from .records import check_count

_COMMENTS = ("#", "//", "%", ";")
_HEAD = 200  # lines at most before the numbers begin


@dataclass(frozen=True)
class _Layout:
    """Where the numbers begin and how they stand."""

    first: int  # lines before the first row of numbers
    separator: str | None  # None: blanks
    columns: int
    names: list[str] | None
    count: int | None  # rows that the file says it has


def read(path: str, how: Reading, rng: Rng) -> np.ndarray:
    """(N, C) float64. A header names the columns; a first line with a single number is the count of points."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        layout = _layout(list(itertools.islice(file, _HEAD)))
    if layout.count is not None:
        check_count(layout.count, os.path.getsize(path), 6)
    taken = how.pick(layout.names, layout.columns)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = itertools.islice(file, layout.first, None)
            cloud = np.loadtxt(lines, delimiter=layout.separator, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(_first_wrong(path, layout) or " ".join(str(error).split())) from None
    if layout.count is not None and layout.count != len(cloud):
        raise ValueError(f"the first line promises {layout.count:,} points, {len(cloud):,} follow: cut off or broken")
    return cloud if taken == list(range(cloud.shape[1])) else cloud[:, taken]


def _layout(lines: list[str]) -> _Layout:
    """From the first lines of a file. Raises ValueError where no row of numbers is among them."""
    names: list[str] | None = None
    count: int | None = None
    for number, line in enumerate(lines):
        if "\0" in line:
            raise ValueError("binary data, not text")
        text = line.strip()
        bare = text.lstrip("#/%; ")
        if not bare:
            continue
        separator = _separator(bare)
        cells = _cells(bare, separator)
        if text.startswith(_COMMENTS):
            names = cells
        elif _numbers(cells):
            if len(cells) == 1 and count is None and cells[0].isdecimal():
                count = int(cells[0][:15])
                continue
            named = names if names is not None and len(names) == len(cells) else None
            return _Layout(number, separator, len(cells), named, count)
        elif names is None or len(names) != len(cells):
            names = cells
        else:
            break
    raise ValueError(f"no row of numbers in the first {len(lines)} lines")


def _separator(text: str) -> str | None:
    return next((one for one in (";", ",", "\t") if one in text), None)


def _cells(text: str, separator: str | None) -> list[str]:
    return [cell.strip() for cell in text.split(separator)]


def _numbers(cells: list[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


def _first_wrong(path: str, layout: _Layout) -> str | None:
    """What is wrong with the first line that does not fit, in words."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number <= layout.first or not line.strip():
                continue
            cells = _cells(line.strip(), layout.separator)
            if len(cells) != layout.columns:
                return f"line {number} has {len(cells)} columns, line {layout.first + 1} has {layout.columns}"
            odd = next((cell for cell in cells if not _numbers([cell])), None)
            if odd is not None:
                return f"line {number}: {odd[:20]!r} is no number"
    return None
