"""Recordings in files as a source: whole, or by windows of which only the asked for part is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Sample
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.files import fingerprint, printable_name
from maemm.data.lists import Labels

from .channels import plain
from .recordings import MOST_VALUES, Header, Reader
from .resample import length_after, ratio, resampled, source_span


@dataclass(frozen=True)
class Taken:
    """What is taken of a recording."""

    channels: tuple[tuple[str, str], ...] | None = None  # (name in the file, name for the model)
    window: int | None = None
    stride: int | None = None
    rate: float | None = None  # of the samples that come out
    recorded_rate: float | None = None  # of files that do not say theirs

    def __post_init__(self) -> None:
        for key in ("rate", "recorded_rate"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1e9:
                raise MaemmError(f"{key} is {value} (data.source.{key}); give samples per second, above 0")

    def rows(self, names: Sequence[str] | None, count: int) -> tuple[list[int], tuple[str, ...] | None]:
        """Rows of a file with channels of these names -> those to take, and their names. Raises ValueError."""
        if self.channels is None:
            return list(range(count)), None if names is None else tuple(names)
        if names is None:
            if len(self.channels) != count:
                raise ValueError(f"has {count} channels without names, data.source.channels gives {len(self.channels)}")
            return list(range(count)), tuple(new for _, new in self.channels)
        at = {plain(name): i for i, name in reversed(list(enumerate(names)))}
        found = [(at[plain(old)], new) for old, new in self.channels if plain(old) in at]
        if not found:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise ValueError(f"has none of the channels of data.source.channels, only {shown}")
        return [row for row, _ in found], tuple(new for _, new in found)

    def ratios(self, rates: Sequence[float | None]) -> list[Fraction]:
        """By how much the rate of each row changes. Raises ValueError where rates are unknown or differ."""
        rates = [self.recorded_rate if rate is None else rate for rate in rates]
        if self.rate is None:
            if len(set(rates)) > 1:
                shown = ", ".join(f"{one:g}" for one in sorted(set(rates)))
                raise ValueError(f"channels have different rates ({shown} per second); set data.source.rate")
            return [Fraction(1)] * len(rates)
        if None in rates:
            raise ValueError("does not say its rate; set data.source.recorded_rate, or data.source.rate to null")
        return [ratio(rate, self.rate) for rate in rates]


class Recordings(files.Files):
    """Files of one recording each. With a window, a sample is one window of a file.

    Then the headers of all files are read when the source is opened. A file whose header cannot be read counts as one
    sample, which is unreadable.
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
        self._last: np.ndarray | None = None  # end of each file's windows
        if taken.window is not None:
            self._last = np.cumsum([self._windows(one) for one in range(len(self._ends))])

    def __len__(self) -> int:
        return len(self._ends) if self._last is None else int(self._last[-1])

    def name(self, index: int) -> str:
        """The path below the folder, with the first sample of the window behind an @."""
        file, number = self._place(index)
        text = printable_name(self.path(file))
        return text if number is None else f"{text}@{number * self.taken.stride}"

    def read(self, index: int, rng: Rng) -> Sample:
        file, number = self._place(index)
        return Sample({self.modality: self._taken(self._where(file), number)}, self.name(index), self.label(file))

    def open(self, path: bytes, rng: Rng) -> dict[str, Any]:
        """A whole recording."""
        return self._taken(Path(os.fsdecode(path)), None)

    def fingerprint(self) -> str:
        """Paths, labels, windows and what is taken."""
        return fingerprint("recordings", super().fingerprint(), self.taken, self._last)

    # ---- pieces
    def _place(self, index: int) -> tuple[int, int | None]:
        """(file, window)."""
        if self._last is None:
            return index, None
        file = int(np.searchsorted(self._last, index, side="right"))
        return file, index - int(self._last[file - 1] if file else 0)

    def _windows(self, file: int) -> int:
        """Whole windows of a file; one where it is shorter, or cannot be opened."""
        try:
            head, rows, _, by = self._opened(self._where(file))
        except (MemoryError, MaemmError):
            raise
        except Exception:  # its reason comes when it is read, and is counted there
            return 1
        length = min(length_after(head.lengths[row], one) for row, one in zip(rows, by, strict=True))
        return max(0, length - self.taken.window) // self.taken.stride + 1

    def _where(self, file: int) -> Path:
        return Path(os.fsdecode(self.folder)) / os.fsdecode(self.path(file))

    def _opened(self, path: Path) -> tuple[Header, list[int], tuple[str, ...] | None, list[Fraction]]:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not an ordinary file")  # a pipe would wait for its writer for ever
        head = self._reader(path).header(path)
        rows, names = self.taken.rows(head.names, len(head.lengths))
        return head, rows, names, self.taken.ratios([head.rates[row] for row in rows])

    def _reader(self, path: Path) -> Reader:
        found = self.readers.get(path.suffix.lower())
        if found is None:
            raise ValueError(f"a file of no known kind ({path.suffix or 'no ending'})")
        return found

    def _taken(self, path: Path, number: int | None) -> dict[str, Any]:
        """{"x": (C, L) float32, "channels": names or None}."""
        head, rows, names, by = self._opened(path)
        length = min(length_after(head.lengths[row], one) for row, one in zip(rows, by, strict=True))
        start, stop = 0, length
        if number is not None:
            start = number * self.taken.stride
            stop = min(length, start + self.taken.window)
        spans = [source_span(start, stop, one, head.lengths[row]) for row, one in zip(rows, by, strict=True)]
        if (values := sum(last - first for first, last, _ in spans)) > MOST_VALUES:
            raise ValueError(f"{values:,} values are too many for one sample; set data.source.window")
        found = self._reader(path).read(path, rows, [(first, last) for first, last, _ in spans])
        parts = [resampled(x, one, span[2], stop - start) for x, one, span in zip(found, by, spans, strict=True)]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"channels have different lengths ({', '.join(str(len(part)) for part in parts)})")
        return {"x": np.stack(parts).astype(np.float32), "channels": names}
