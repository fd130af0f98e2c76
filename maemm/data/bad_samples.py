"""The record of samples that could not be read, and the point at which there are too many of them.

The rule: a run stops once *distinct bad samples > max_share x samples of the data set*. The share is taken of the
whole data set, not of what has been seen so far, so one broken file among the first five read stops nothing, and a
data set with too many broken files stops in its first epoch, as soon as that is certain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from maemm.contract.errors import MaemmError


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
    """``text`` without what a terminal or a UTF-8 file refuses: file names need not be valid text."""
    return text.encode("utf-8", "backslashreplace").decode()


class BadSampleLog:
    """Appends every bad sample once to a file of JSON lines and stops the run when there are too many.

    ``path``: the file, shared by all processes of a run and kept over a resume; None: count only. ``max_share``: the
    share of the ``total`` samples that may be bad, 0 .. 1. A half-written last line, as a killed run leaves it, is
    closed and ignored.
    """

    def __init__(self, path: str | Path | None, max_fraction: float, total: int):
        self.path = None if path is None else Path(path)
        self.max_fraction, self.total = max_fraction, total
        self._known: set[str] = set()
        self._offset = 0  # in the file, up to where it has been read
        self._read_new()

    def __len__(self) -> int:
        """How many distinct bad samples are known."""
        return len(self._known)

    def add(self, samples: Iterable[BadSample]) -> int:
        """Record ``samples``; -> how many of them were new. Raises :class:`MaemmError` when there are too many."""
        samples = [sample for sample in samples if sample.id not in self._known]
        if not samples:
            return 0
        self._read_new()  # another process may have met the same ones, and its own count towards the share
        new = {sample.id: sample for sample in samples if sample.id not in self._known}
        self._known.update(new)
        self._append(new.values())
        self.check()
        return len(new)

    def check(self) -> None:
        """Raise :class:`MaemmError` if more than ``max_share`` of the samples are bad; also worth asking on resume."""
        bad = len(self._known)
        if bad <= self.max_fraction * self.total:
            return
        listed = f"; list: {self.path}" if self.path else ""
        raise MaemmError(
            f"{bad:,} of {self.total:,} samples are unreadable ({100 * bad / max(self.total, 1):.3g} %, allowed "
            f"{100 * self.max_fraction:.3g} %{listed}); fix the data or set data.max_bad_fraction"
        )

    def _read_new(self) -> None:
        """Take up the complete lines behind the offset; lines that are no record are passed over."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                self._known.add(str(json.loads(line)["id"]))
            except (ValueError, KeyError, TypeError):
                continue

    def _append(self, samples: Iterable[BadSample]) -> None:
        if self.path is None:
            return
        text = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() and not self._ends_whole():
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
