"""Tables of numbers as text: .xyz, .txt, .csv, .pts, .asc; separated by commas, semicolons, tabs or blanks."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

import numpy as np

from maemm.contract.rng import Rng
from maemm.data.list_text import LONGEST_LINE

from .pick import Reading
from .records import check_count

_COMMENTS = ("#", "//", "%", ";")
_HEAD = 200  # largest number of lines before the numbers


@dataclass(frozen=True)
class _Layout:
    """Where the numbers start and how they are separated."""

    first: int  # lines before the first row of numbers
    separator: str | None  # None: blanks
    columns: int
    names: list[str] | None
    count: int | None  # rows that the file declares


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """(N, C) float64. A header may name the columns; a first line with a single number is the number of points."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        layout = _layout([file.readline(LONGEST_LINE + 1) for _ in range(_HEAD)])
    if layout.count is not None:
        check_count(layout.count, os.path.getsize(path), 6)
    columns = options.choose_columns(layout.names, layout.columns)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = itertools.islice(file, layout.first, None)
            cloud = np.loadtxt(lines, delimiter=layout.separator, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(_first_error(path, layout) or " ".join(str(error).split())) from None
    if layout.count is not None and layout.count != len(cloud):
        raise ValueError(f"the first line declares {layout.count:,} points, {len(cloud):,} follow: truncated or broken")
    return cloud if columns == list(range(cloud.shape[1])) else cloud[:, columns]


def _layout(lines: list[str]) -> _Layout:
    """The layout, from the first lines of a file. Raises ValueError if there is no row of numbers among them."""
    names: list[str] | None = None
    count: int | None = None
    for number, line in enumerate(lines):
        if "\0" in line:
            raise ValueError("binary data, not text")
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number + 1} has more than {LONGEST_LINE:,} characters; write a point per line")
        text = line.strip()
        bare = text.lstrip("#/%; ")
        if not bare:
            continue
        separator = _separator(bare)
        cells = _cells(bare, separator)
        if text.startswith(_COMMENTS):
            names = cells
        elif _are_numbers(cells):
            if len(cells) == 1 and count is None and cells[0].isdecimal():
                count = int(cells[0][:15])
                continue
            named = names if names is not None and len(names) == len(cells) else None
            return _Layout(number, separator, len(cells), named, count)
        elif names is None or len(names) != len(cells):
            names = cells
        else:
            break
    raise ValueError(f"no row of numbers in the first {sum(map(bool, lines))} lines")


def _separator(text: str) -> str | None:
    return next((separator for separator in (";", ",", "\t") if separator in text), None)


def _cells(text: str, separator: str | None) -> list[str]:
    return [cell.strip() for cell in text.split(separator)]


def _are_numbers(cells: list[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


def _first_error(path: str, layout: _Layout) -> str | None:
    """What is wrong with the first invalid line, in words."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number <= layout.first or not line.strip():
                continue
            cells = _cells(line.strip(), layout.separator)
            if len(cells) != layout.columns:
                return f"line {number} has {len(cells)} columns, line {layout.first + 1} has {layout.columns}"
            invalid = next((cell for cell in cells if not _are_numbers([cell])), None)
            if invalid is not None:
                return f"line {number}: {invalid[:20]!r} is not a number"
    return None
