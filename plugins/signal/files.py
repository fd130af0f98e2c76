"""Recordings in files as a source: whole, or cut into windows, each read by itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maemm.contract import Sample
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.files import fingerprint, printable_name
from maemm.data.lists import Labels

from .channels import matching_rows
from .recordings import MOST_VALUES, Reader
from .resample import length_after, ratio, resampled, source_span


@dataclass(frozen=True)
class Taken:
    """What is read of a recording. Its text is part of fingerprints, so names and defaults stay as they are."""

    channels: tuple[tuple[str, str], ...] | None = None  # (name in the file, name for the model)
    window: int | None = None
    stride: int | None = None
    rate: float | None = None  # to resample to; None: as recorded
    recorded_rate: float | None = None  # of files that do not record theirs

    def __post_init__(self) -> None:
        for key in ("rate", "recorded_rate"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1e9:
                raise MaemmError(f"{key} is {value} (data.source.{key}); give samples per second, above 0")

    def rows(self, names: Sequence[str] | None, count: int) -> tuple[list[int], tuple[str, ...] | None]:
        """The rows to read of a file of ``count`` channels with these names, and their names. Raises ValueError."""
        if self.channels is None:
            return list(range(count)), None if names is None else tuple(names)
        if names is None:
            if len(self.channels) != count:
                raise ValueError(f"has {count} channels without names, data.source.channels gives {len(self.channels)}")
            return list(range(count)), tuple(new for _, new in self.channels)
        old, new = zip(*self.channels, strict=True)
        rows = matching_rows(names, old)
        if not rows:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise ValueError(f"has none of the channels of data.source.channels, only {shown}")
        return [row for row, _ in rows], tuple(new[i] for _, i in rows)

    def ratios(self, rates: Sequence[float | None]) -> list[Fraction]:
        """New rate over old, of each row. Raises ValueError where rates are unknown or differ."""
        rates = [self.recorded_rate if rate is None else rate for rate in rates]
        if self.rate is None:
            if len(set(rates)) > 1:
                shown = ", ".join(f"{rate:g}" for rate in sorted({rate for rate in rates if rate is not None}))
                raise ValueError(f"channels have different rates ({shown} per second); set data.source.rate")
            return [Fraction(1)] * len(rates)
        ratios = []
        for rate in rates:
            if rate is None:
                raise ValueError("does not say its rate; set data.source.recorded_rate, or data.source.rate to null")
            ratios.append(ratio(rate, self.rate))
        return ratios


class _Opened(NamedTuple):
    """A recording whose header has been read; one value per row."""

    reader: Reader
    rows: list[int]
    names: tuple[str, ...] | None
    ratios: list[Fraction]  # new rate over old
    lengths: list[int]  # as recorded

    @property
    def length(self) -> int:
        """Resampled length of the shortest row."""
        return min(length_after(length, by) for length, by in zip(self.lengths, self.ratios, strict=True))


class Recordings(files.Files):
    """Files of one recording each. With ``taken.window`` a sample is one window of a file.

    Then the headers of all files are read when the source is opened. A file whose header cannot be read counts as one
    window, which is then unreadable.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Labels | None,
        classes: Sequence[str] | None,
        taken: Taken,
        readers: Mapping[str, Reader],
        *,
        name: str = "signal",
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self.taken, self.readers = taken, dict(readers)
        self._window_ends: np.ndarray | None = None  # of each file; None: a sample is a file
        if taken.window is not None:
            self._window_ends = np.cumsum([self._window_count(file) for file in range(len(self._ends))])

    def __len__(self) -> int:
        return len(self._ends) if self._window_ends is None else int(self._window_ends[-1])

    def name(self, index: int) -> str:
        """The path below the folder, with the first sample of the window behind an @."""
        file, start = self._position(index)
        text = printable_name(self.path(file))
        return text if start is None else f"{text}@{start}"

    def read(self, index: int, rng: Rng) -> Sample:
        file, start = self._position(index)
        return Sample({self.modality: self._read(self._file(file), start)}, self.name(index), self.label(file))

    def open(self, path: bytes, rng: Rng) -> dict[str, Any]:
        """A whole recording."""
        return self._read(Path(os.fsdecode(path)), None)

    def paths(self, index: int) -> Mapping[str, Any] | None:
        return None if self._window_ends is not None else super().paths(index)

    def fingerprint(self) -> str:
        """Paths, labels, windows and what is taken."""
        return fingerprint("recordings", super().fingerprint(), self.taken, self._window_ends)

    # ---- helpers
    def _position(self, index: int) -> tuple[int, int | None]:
        """(file, first sample of the window in it)."""
        if self._window_ends is None:
            return index, None
        assert self.taken.stride is not None
        file = int(np.searchsorted(self._window_ends, index, side="right"))
        return file, (index - int(self._window_ends[file - 1] if file else 0)) * self.taken.stride

    def _window_count(self, file: int) -> int:
        """Whole windows of a file; one where it is shorter, or cannot be opened."""
        assert self.taken.window is not None and self.taken.stride is not None
        try:
            opened = self._open(self._file(file))
        except (MemoryError, MaemmError):
            raise
        except Exception:  # the reason is reported when the window is read
            return 1
        return max(0, opened.length - self.taken.window) // self.taken.stride + 1

    def _file(self, file: int) -> Path:
        return Path(os.fsdecode(self.folder)) / os.fsdecode(self.path(file))

    def _open(self, path: Path) -> _Opened:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not an ordinary file")  # opening a pipe would block
        reader = self.readers.get(path.suffix.lower())
        if reader is None:
            raise ValueError(f"a file of no known kind ({path.suffix or 'no ending'})")
        header = reader.header(path)
        rows, names = self.taken.rows(header.names, len(header.lengths))
        ratios = self.taken.ratios([header.rates[row] for row in rows])
        return _Opened(reader, rows, names, ratios, [header.lengths[row] for row in rows])

    def _read(self, path: Path, start: int | None) -> dict[str, Any]:
        """A window, or with None a whole recording: {"x": (C, L) numbers, "channels": names or None}."""
        opened = self._open(path)
        stop = opened.length
        if start is None:
            start = 0
        else:
            assert self.taken.window is not None
            stop = min(stop, start + self.taken.window)
        spans = [source_span(start, stop, by, n) for by, n in zip(opened.ratios, opened.lengths, strict=True)]
        if (values := sum(last - first for first, last, _ in spans)) > MOST_VALUES:
            raise ValueError(f"{values:,} values are too many for one sample; set data.source.window")
        stored = opened.reader.read(path, opened.rows, [(first, last) for first, last, _ in spans])
        parts = [
            resampled(x, by, skip, stop - start)
            for x, by, (_, _, skip) in zip(stored, opened.ratios, spans, strict=True)
        ]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"channels have different lengths ({', '.join(str(len(part)) for part in parts)})")
        x = np.stack(parts)
        with np.errstate(over="ignore"):  # what float32 cannot hold stays: the modality has a rule
            narrowed = x.astype(np.float32)
        return {"x": x if x.dtype.itemsize > 4 and np.isinf(narrowed).any() else narrowed, "channels": opened.names}
