"""The record of samples that could not be read, and the limit of how many may be.

The rule: a run stops once *distinct bad samples > max_fraction x samples of the data set*. The fraction is that of the
whole data set, not of what has been read so far: one broken file among the first five read stops nothing, and a
data set with too many broken files stops in its first epoch, as soon as that is certain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from maemm.contract.errors import MaemmError
from maemm.data.line_files import lines_of, record_of


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read."""

    index: int  # in its source
    id: str
    reason: str  # one line


def reason_of(error: BaseException, limit: int = 200) -> str:
    """An exception in one line of at most ``limit`` characters."""
    # The path in an OSError's text only repeats the sample's name.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(line if len(line) <= limit else line[: limit - 3] + "...")


def printable(text: str) -> str:
    """``text`` with what UTF-8 cannot encode escaped: file names need not be valid text."""
    return text.encode("utf-8", "backslashreplace").decode()


class BadSampleLog:
    """Appends every bad sample once to a file of JSON lines and stops the run when there are too many.

    ``path``: the file, shared by all ranks of a run and continued when the run is resumed; None: count only.
    ``max_fraction``: the fraction of the ``total`` samples that may be bad, 0 .. 1. An incomplete last line, left by a
    killed run, is closed and ignored.
    """

    def __init__(self, path: str | Path | None, max_fraction: float, total: int):
        self.path = None if path is None else Path(path)
        self.max_fraction, self.total = max_fraction, total
        self._ids: set[str] = set()
        self._offset = 0  # in the file, up to where it has been read
        self._read_new()

    def __len__(self) -> int:
        """Number of distinct bad samples so far."""
        return len(self._ids)

    def add(self, samples: Iterable[BadSample]) -> int:
        """Record ``samples``; -> how many of them were new. Raises :class:`MaemmError` when there are too many."""
        samples = [sample for sample in samples if sample.id not in self._ids]
        if not samples:
            return 0
        self._read_new()  # other ranks may have met the same samples, and theirs count towards the limit
        new = {sample.id: sample for sample in samples if sample.id not in self._ids}
        self._ids.update(new)
        self._append(new.values())
        self.check()
        return len(new)

    def summary(self) -> str:
        """How many samples were unreadable, on all ranks, and where they are listed; "" if none was."""
        self._read_new()
        where = f" (list: {self.path})" if self.path else ""
        return f"{len(self._ids):,} of {self.total:,} samples unreadable{where}" if self._ids else ""

    def check(self) -> None:
        """Raise :class:`MaemmError` if more than ``max_fraction`` of the samples are bad; call it on resume too."""
        bad = len(self._ids)
        if bad <= self.max_fraction * self.total:
            return
        log = f"; list: {self.path}" if self.path else ""
        raise MaemmError(
            f"{bad:,} of {self.total:,} samples are unreadable ({100 * bad / max(self.total, 1):.3g} %, allowed "
            f"{100 * self.max_fraction:.3g} %{log}); fix the data or set data.max_bad_fraction"
        )

    def _read_new(self) -> None:
        """Read the complete lines after the offset; lines that are no record are skipped."""
        if self.path is None or not self.path.exists():
            return
        end = self._offset
        try:
            for line in lines_of(self.path, self._offset):
                end += len(line)
                if not line.endswith(b"\n"):
                    continue
                self._offset = end
                record = record_of(line)
                if record is not None and "id" in record:
                    self._ids.add(str(record["id"]))
        except OSError as error:
            raise MaemmError(f"cannot read {self.path} ({error.strerror}); move it away") from error

    def _append(self, samples: Iterable[BadSample]) -> None:
        text = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
        if self.path is None or not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the end of a killed run
                    text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
