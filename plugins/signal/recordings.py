"""Recordings: files of channels over time, read whole or in parts, as far as no extra package is needed.

A reader has ``header(path)`` and ``read(path, rows, spans)``. Files are opened in each call, so that a reader can be
pickled to workers. A broken file raises ValueError or OSError with the reason.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.npyio import NpzFile

from maemm.data.arrays import array_key, open_array_file
from maemm.data.list_text import LONGEST_LINE

from .._sounds.files import SoundStream, open_sound
from .._sounds.promises import truncation_reason

MOST_VALUES = 2**28  # in one sample; more is a mistake, or needs data.source.window
CACHE_BYTES = 2**26  # of tables in memory
_TIME = ("time", "t", "timestamp", "seconds", "time_s", "time (s)", "sec")
_SIGNALS = ("x", "signal", "signals", "data")


@dataclass(frozen=True)
class Header:
    """What a file records about its channels, known before any sample is read."""

    names: tuple[str, ...] | None  # None: the format has none
    rates: tuple[float | None, ...]  # samples per second of each channel; None: unknown
    lengths: tuple[int, ...]  # samples of each channel

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ValueError("no channels")
        if min(self.lengths) < 1:
            raise ValueError("no samples")
        for rate in self.rates:
            if rate is not None and not (math.isfinite(rate) and 0 < rate < 1e9):
                raise ValueError(f"a rate of {rate:g} samples per second is impossible")


class Reader(Protocol):
    """How one kind of file is read."""

    def header(self, path: Path) -> Header: ...

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """One array (stop - start,) for each of ``rows``, each with its span (start, stop)."""
        ...


def uniform_header(names: Sequence[str] | None, rate: float | None, channels: int, length: int) -> Header:
    """The header of a file whose channels share one rate and length."""
    return Header(None if names is None else unique_names(names), (rate,) * channels, (length,) * channels)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Channel names, stripped; repeated ones get "#2", "#3"."""
    seen: Counter[str] = Counter()
    unique = []
    for name in map(str.strip, names):
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(unique)


# --------------------------------------------------------------------------------------------------- arrays
class Arrays:
    """``.npy``: (L,) or channels and time, mapped, so that only the requested part is read. ``.npz``: the same as "x",
    "signal", "signals" or "data" (or as the only array), with "channels" (names) and "rate", read whole.

    ``time_first``: order of the two axes; None: time is the longer one.
    """

    def __init__(self, time_first: bool | None = None):
        self.time_first = time_first

    def header(self, path: Path) -> Header:
        x, names, rate = self._open(path)
        if names is not None and len(names) != len(x):
            raise ValueError(f"{len(names)} channel names for {len(x)} channels")
        return uniform_header(names, rate, *x.shape)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        x = self._open(path)[0]
        return [np.array(x[row, start:stop]) for row, (start, stop) in zip(rows, spans, strict=True)]

    def _open(self, path: Path) -> tuple[np.ndarray, tuple[str, ...] | None, float | None]:
        with open_array_file(path) as stored:
            if isinstance(stored, np.ndarray):
                return self._rows(stored), None, None
            x = self._rows(stored[array_key(stored, _SIGNALS, ignore=())])
            return x, names_in(stored), rate_in(stored)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """(C, L)."""
        if x.ndim not in (1, 2):
            raise ValueError(f"a recording has 1 or 2 dimensions, this array has shape {x.shape}")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"samples are {x.dtype}, not numbers")
        if x.ndim == 1:
            return x[None]
        return x.T if time_is_first(x.shape, self.time_first) else x


def time_is_first(shape: tuple[int, ...], option: bool | None) -> bool:
    """Whether the first of the last two axes is time: ``option``, or if that is None, whether it is the longer one."""
    return shape[-2] > shape[-1] if option is None else option


def names_in(archive: NpzFile) -> tuple[str, ...] | None:
    """Channel names in a .npz file, called "channels" or "names"."""
    names = next((archive[key] for key in ("channels", "names") if key in archive.files), None)
    return None if names is None or names.ndim != 1 else tuple(str(name) for name in names)


def rate_in(archive: NpzFile) -> float | None:
    """Samples per second in a .npz file, called "rate" or "fs"."""
    return next((float(archive[key]) for key in ("rate", "fs") if key in archive.files), None)


# ------------------------------------------------------------------------------------------------------ text
class Table:
    """``.csv`` and ``.tsv``: a column per channel, with names in the first line; empty cells are NaN.

    A column called time, t, timestamp or seconds gives the rate. Columns of words may stand between the channels. Text
    cannot be read in parts: the whole file is read, once as long as all files fit into ``CACHE_BYTES``.
    """

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[str, int, int], _Content] = OrderedDict()  # the most recently used last
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": OrderedDict(), "_bytes": 0}  # workers fill their own

    def header(self, path: Path) -> Header:
        names, x, rate, _ = self._whole(path)
        return uniform_header(names, rate, *x.shape)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        names, x, _, words = self._whole(path)
        if (row := next((row for row in rows if row in words), None)) is not None:
            name = f"column {row + 1}" if names is None else f"the column {names[row]!r}"
            raise ValueError(f"{name} holds words ({words[row]}); name the channels to read in data.source.channels")
        return [x[row, start:stop] for row, (start, stop) in zip(rows, spans, strict=True)]

    def _whole(self, path: Path) -> _Content:
        status = path.stat()
        if not status.st_size:
            raise ValueError("empty file (0 bytes)")
        key = os.fspath(path), status.st_mtime_ns, status.st_size  # a rewritten file is another one
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = _table(path)
            self._bytes += self._cache[key].x.nbytes
        while len(self._cache) > 1 and self._bytes > CACHE_BYTES:
            self._bytes -= self._cache.popitem(last=False)[1].x.nbytes
        return self._cache[key]


class _Content(NamedTuple):
    """A table in memory."""

    names: tuple[str, ...] | None
    x: np.ndarray  # (C, L) float64, NaN in columns with words
    rate: float | None
    words: dict[int, str]  # channel: its first cell that is no number, and where


def _table(path: Path) -> _Content:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline(LONGEST_LINE + 1)
        if len(first) > LONGEST_LINE:
            raise ValueError(f"its first line has more than {LONGEST_LINE:,} characters; write a column per channel")
        if "\0" in first:
            raise ValueError("no text")
        separator = next((character for character in "\t;," if character in first), ",")
        cells = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        named = not all(_is_number(cell) for cell in cells)
        if not named:
            file.seek(0)
        x, words = _numbers(file, separator, len(cells), 1 + named)
    names = unique_names(cells) if named else None
    if names is None or not any(name.casefold() in _TIME for name in names):
        return _Content(names, x.T, None, words)
    column = next(i for i, name in enumerate(names) if name.casefold() in _TIME)
    rate = None if column in words else _rate(x[:, column])  # dates say no rate
    others = {row - (row > column): cell for row, cell in words.items() if row != column}
    return _Content(names[:column] + names[column + 1 :], np.delete(x.T, column, 0), rate, others)


def _cell(text: str) -> float:
    return float(text) if text.strip() else math.nan


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _numbers(file: Iterable[str], separator: str, columns: int, first: int) -> tuple[np.ndarray, dict[int, str]]:
    """(L, C) of the remaining lines, and the columns with words; ``first``: number of the first line."""
    lines = [line for line in file if line.strip()]
    if not lines:
        raise ValueError("no samples below the header")
    try:
        x = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None)
    except ValueError:  # perhaps because of empty cells or words, which only the slower way handles
        return _mixed(lines, separator, columns, first)
    if x.shape[1] != columns:
        raise ValueError(f"{x.shape[1]} columns below a header of {columns}")
    return x, {}


def _mixed(lines: list[str], separator: str, columns: int, first: int) -> tuple[np.ndarray, dict[int, str]]:
    """The same for lines with empty cells and words."""
    rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    if (odd := next((row for row in rows if len(row) != columns), None)) is not None:
        raise ValueError(f"{len(odd)} columns below a header of {columns}")
    x, words = np.full((len(rows), columns), np.nan), {}
    for column, cells in enumerate(zip(*rows, strict=True)):
        try:
            x[:, column] = [_cell(cell) for cell in cells]
        except ValueError:
            number = next(i for i, cell in enumerate(cells) if cell.strip() and not _is_number(cell))
            words[column] = f"{cells[number][:20]!r} in line {number + first}"
    return x, words


def _rate(time: np.ndarray) -> float:
    """Samples per second of a column of seconds."""
    steps = np.diff(time)
    if not steps.size or not np.isfinite(steps).all():
        raise ValueError("the time column has gaps or a single line")
    usual = float(np.median(steps))
    if usual <= 0 or (np.abs(steps - usual) > usual / 2).any():
        raise ValueError("the time column is not evenly spaced; resample the recording, or drop the column")
    return (len(time) - 1) / float(time[-1] - time[0])


# ----------------------------------------------------------------------------------------------------- sound
class Sound:
    """WAV, FLAC and other sound files, read in parts; full scale is 1. Channels have no names."""

    def header(self, path: Path) -> Header:
        file = self._opened(path)
        return uniform_header(None, float(file.rate), file.channels, file.length)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
        try:
            x = self._opened(path).read(first, last - first)
        except RuntimeError as error:  # LibsndfileError
            raise ValueError(f"cannot be decoded ({getattr(error, 'error_string', error)})") from None
        if len(x) < last - first:
            raise ValueError(f"the file ends after {first + len(x):,} samples")
        return [x[start - first : stop - first, row] for row, (start, stop) in zip(rows, spans, strict=True)]

    def _opened(self, path: Path) -> SoundStream:
        status = path.stat()
        if not status.st_size:
            raise ValueError("empty file (0 bytes)")
        if (reason := truncation_reason(os.fsencode(path), status.st_size)) is not None:
            raise ValueError(reason)
        return open_sound(os.fsencode(path))
