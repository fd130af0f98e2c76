"""The ends of metrics.jsonl: what a run wrote last, without reading all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from maemm.config.paths import check_regular
from maemm.data.line_files import record_of

_END = 256 * 1024  # bytes, some hundred lines
_MOST = 4 << 20  # bytes that are read where no row is among those


class End:
    """The last rows of a metrics.jsonl, or the last before byte ``end``, the newest first.

    Lines that are half written, or are no rows of a run, are left out. Raises OSError.
    """

    def __init__(self, path: Path, end: int | None = None):
        check_regular(path)
        with path.open("rb") as file:
            end = file.seek(0, 2) if end is None else end
            size = min(_END, end)
            while True:
                file.seek(end - size)
                lines = file.read(size).split(b"\n")
                # What stands behind the last line break is half written, or the beginning of the next line.
                self._lines = lines[0 if size == end else 1 : -1][::-1]
                if size >= min(end, _MOST) or next(self.rows(), None) is not None:
                    break
                size = min(4 * size, end)
        self.empty = end == 0

    def rows(self, holding: str = "") -> Iterator[dict[str, Any]]:
        """The rows, of those that hold the key ``holding`` somewhere."""
        mark = f'"{holding}"'.encode() if holding else b""
        for line in self._lines:
            if mark in line and (row := row_of(line)) is not None:
                yield row


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None where it holds none of a run."""
    row = record_of(line) if line else None
    return row if row is not None and step_of(row) is not None else None


def step_of(row: dict[str, Any]) -> int | None:
    """The step of a row of a run."""
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else None


def offset_after(path: Path, step: int) -> int:
    """The byte behind the last row of at most ``step`` steps: steps ascend, so that few lines are read."""
    check_regular(path)
    with path.open("rb") as file:
        low, high = 0, file.seek(0, 2)  # rows that begin before low are of at most so many steps
        while low < high:
            middle = (low + high) // 2
            file.seek(max(0, middle - 1))
            if middle:
                file.readline()  # to the first line that begins at the middle or behind it
            row, end = _next_row(file)
            if row is None or (step_of(row) or 0) > step:
                high = middle
            else:
                low = end
        return low


def _next_row(file: IO[bytes]) -> tuple[dict[str, Any] | None, int]:
    """The next whole row, and the byte behind it."""
    while (line := file.readline()).endswith(b"\n"):
        if (row := row_of(line)) is not None:
            return row, file.tell()
    return None, file.tell()


def flat(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row; those inside others as ``validation.loss``."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if is_finite(number):
                numbers[f"{name}.{inner}" if inner else name] = number
    return numbers


def is_finite(value: Any) -> bool:
    """Whether it is a number, and a finite one."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
