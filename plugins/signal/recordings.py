"""Recordings: files of channels over time, read whole or by stretches. What can be read without extra packages.

A reader is a module-level object with ``header(path)`` and ``read(path, rows, spans)``; files are opened in each call,
so that nothing open travels to a worker. Whatever is wrong with a file is a ValueError or OSError with the reason.
"""

from __future__ import annotations

import csv
import math
import os
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MOST_VALUES = 2**28  # of one stretch; more is a mistake, or wants data.source.window
KEPT = 2**26  # bytes of tables that are kept
_TIME = ("time", "t", "timestamp", "seconds", "time_s", "time (s)", "sec")
_SIGNALS = ("x", "signal", "signals", "data")


@dataclass(frozen=True)
class Header:
    """What a file says about its channels before any sample is read."""

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
                raise ValueError(f"a rate of {rate:g} samples per second cannot be")


class Reader(Protocol):
    """How one kind of file is read."""

    def header(self, path: Path) -> Header: ...

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """One array (stop - start,) for each of ``rows``, of its own span."""
        ...


def equal(names: Sequence[str] | None, rate: float | None, channels: int, length: int) -> Header:
    """The header of a file whose channels all have one rate and length."""
    return Header(None if names is None else told_apart(names), (rate,) * channels, (length,) * channels)


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Channel names without blanks around them; of equal ones the later get "#2", "#3"."""
    seen: dict[str, int] = {}
    found = []
    for name in (one.strip() for one in names):
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)


# --------------------------------------------------------------------------------------------------- arrays
class Arrays:
    """``.npy``: (L,) or channels and time, mapped, so that only what is asked for is read. ``.npz``: the same under
    "x", "signal", "signals" or "data" (or as the only array), with "channels" (names) and "rate", read whole.

    ``time_first``: order of the two axes; None: time is the longer one.
    """

    def __init__(self, time_first: bool | None = None):
        self.time_first = time_first

    def header(self, path: Path) -> Header:
        x, names, rate = self._open(path)
        if names is not None and len(names) != len(x):
            raise ValueError(f"{len(names)} channel names for {len(x)} channels")
        return equal(names, rate, *x.shape)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        x = self._open(path)[0]
        return [np.array(x[row, start:stop]) for row, (start, stop) in zip(rows, spans, strict=True)]

    def _open(self, path: Path) -> tuple[np.ndarray, tuple[str, ...] | None, float | None]:
        names = rate = None
        with load_numbers(path) as stored:
            if isinstance(stored, np.ndarray):
                return self._rows(stored), None, None
            x = self._rows(stored[_signal_key(stored.files)])
            names = names_in(stored)
            rate = next((float(stored[key]) for key in ("rate", "fs") if key in stored.files), None)
        return x, names, rate

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """(C, L)."""
        if x.ndim not in (1, 2):
            raise ValueError(f"a recording has 1 or 2 dimensions, this array has shape {x.shape}")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"samples are {x.dtype}, not numbers")
        if x.ndim == 1:
            return x[None]
        return x.T if time_is_first(x.shape, self.time_first) else x


@contextmanager
def load_numbers(path: Path) -> Iterator[np.ndarray | np.lib.npyio.NpzFile]:
    """The mapped array of a .npy file, or an open .npz archive. Nothing is unpickled. Raises ValueError or OSError."""
    with open(path, "rb") as file:
        head = file.read(6)
        if not head:
            raise ValueError("empty file (0 bytes)")
        if head == b"\x93NUMPY":
            yield np.load(path, mmap_mode="r", allow_pickle=False)
            return
        if head[:2] != b"PK":
            raise ValueError(f"not an array file (starts with {head!r})")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"the archive is cut off or damaged ({error})") from None


def time_is_first(shape: tuple[int, ...], given: bool | None) -> bool:
    """Of the last two axes, is the first one time? The longer one is, unless ``given`` says so."""
    return shape[-2] > shape[-1] if given is None else given


def names_in(archive: np.lib.npyio.NpzFile) -> tuple[str, ...] | None:
    """Channel names in a .npz file, under "channels" or "names"."""
    found = next((archive[key] for key in ("channels", "names") if key in archive.files), None)
    return None if found is None or found.ndim != 1 else tuple(str(one) for one in found)


def _signal_key(keys: Sequence[str]) -> str:
    found = next((key for key in _SIGNALS if key in keys), None)
    if found is None and len(keys) != 1:
        raise ValueError(f"cannot tell which array holds the signal ({', '.join(keys) or 'none'}): call it x")
    return found or keys[0]


# ------------------------------------------------------------------------------------------------------ text
class Table:
    """``.csv`` and ``.tsv``: a column per channel, whose names are in the first line; empty cells are NaN.

    A column called time, t, timestamp or seconds gives the rate. Text cannot be read by stretches: the whole file is
    read, once as long as ``KEPT`` bytes of numbers hold all files in turn.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], tuple] = OrderedDict()  # the last one read stands at the end
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": OrderedDict(), "_bytes": 0}  # workers fill their own

    def header(self, path: Path) -> Header:
        names, x, rate = self._whole(path)
        return equal(names, rate, *x.shape)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        x = self._whole(path)[1]
        return [x[row, start:stop] for row, (start, stop) in zip(rows, spans, strict=True)]

    def _whole(self, path: Path) -> tuple[tuple[str, ...] | None, np.ndarray, float | None]:
        status = path.stat()
        if not status.st_size:
            raise ValueError("empty file (0 bytes)")
        key = os.fspath(path), status.st_mtime_ns, status.st_size  # a rewritten file is another one
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = _table(path)
            self._bytes += self._kept[key][1].nbytes
        while len(self._kept) > 1 and self._bytes > KEPT:
            self._bytes -= self._kept.popitem(last=False)[1][1].nbytes
        return self._kept[key]


def _table(path: Path) -> tuple[tuple[str, ...] | None, np.ndarray, float | None]:
    """(names, (C, L) float64, rate)."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        if "\0" in first:
            raise ValueError("no text")
        separator = next((one for one in ("\t", ";", ",") if one in first), ",")
        cells = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        named = not all(_is_number(cell) for cell in cells)
        if not named:
            file.seek(0)
        x = _numbers(file, separator, len(cells))
    names = told_apart(cells) if named else None
    if names is None or not any(name.casefold() in _TIME for name in names):
        return names, x.T, None
    at = next(i for i, name in enumerate(names) if name.casefold() in _TIME)
    return names[:at] + names[at + 1 :], np.delete(x.T, at, 0), _rate(x[:, at])


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _numbers(file: object, separator: str, columns: int) -> np.ndarray:
    """(L, C) of the lines that are left."""
    lines = [line for line in file if line.strip()]  # type: ignore[attr-defined]
    if not lines:
        raise ValueError("no samples below the header")
    try:
        x = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None)
    except ValueError:  # perhaps for empty cells, which the slower way takes
        x = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None, converters=_cell, encoding="utf-8")
    if x.shape[1] != columns:
        raise ValueError(f"{x.shape[1]} columns below a header of {columns}")
    return x


def _cell(text: str) -> float:
    return float(text) if text.strip() else math.nan


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
    """WAV and its like, through libsndfile, read by stretches; full scale is 1. Channels have no names."""

    def header(self, path: Path) -> Header:
        with self._opened(path) as file:
            return equal(None, float(file.samplerate), file.channels, file.frames)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
        with self._opened(path) as file:
            try:
                file.seek(first)
                x = file.read(last - first, dtype="float32", always_2d=True)
            except RuntimeError as error:  # LibsndfileError
                raise ValueError(f"cannot be decoded ({getattr(error, 'error_string', error)})") from None
        if len(x) < last - first:
            raise ValueError(f"the file ends after {first + len(x):,} samples")
        return [x[start - first : stop - first, row] for row, (start, stop) in zip(rows, spans, strict=True)]

    def _opened(self, path: Path):
        import soundfile

        with open(path, "rb") as file:
            head = file.read(8)
        if not head:
            raise ValueError("empty file (0 bytes)")
        promised = int.from_bytes(head[4:8], "little") + 8
        # libsndfile reads what there is without a word. Streams leave the size at 0 or at its largest.
        if head[:4] == b"RIFF" and 8 < promised < 0xFFFFFFF0 and promised > path.stat().st_size + 1:
            raise ValueError(f"truncated: the header promises {promised:,} bytes, there are {path.stat().st_size:,}")
        try:
            return soundfile.SoundFile(os.fspath(path))
        except RuntimeError as error:  # LibsndfileError
            raise ValueError(f"not a readable sound file ({getattr(error, 'error_string', error)})") from None
