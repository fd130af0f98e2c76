"""Read every sample of a data set once, and keep what was read, so that an interrupted scan resumes.

The rows of a scan are appended to a state file, a line of JSON for each sample in the order of the source. The same
scan started again resumes after the last whole line, so that an interrupted scan ends like an uninterrupted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from maemm.contract import Modality, Source
from maemm.contract.errors import MaemmError
from maemm.data.loader import name_of
from maemm.data.single_pass import Progress
from maemm.data.threads import one_thread
from maemm.data.workers import Failure, WorkerLost, Workers
from maemm.tasks._shared.sample_facts import Looker, Row

VERSION = 1  # of the state file
CHUNK = 8  # samples of a task; after a worker died, at most so many for each worker are read again


def scan_rows(
    source: Source,
    modalities: Mapping[str, Modality],
    *,
    start: int = 0,
    workers: int = 0,
    timeout: float = 600,
    on_progress: Progress | None = None,
) -> Generator[list[Row], None, None]:
    """Lists of rows (see :class:`~maemm.tasks._shared.sample_facts.Looker`) of the samples from ``start`` on, in order.

    A sample that kills its worker, or takes longer than ``timeout`` seconds, has that as its reason for being bad.
    Raises :class:`MaemmError` where a worker is lost between two samples.
    """
    total, looker = len(source), Looker(source, modalities)
    while start < total:
        try:
            with closing(_chunks(looker, start, total, workers, timeout)) as chunks:
                for rows in chunks:
                    start += len(rows)
                    yield rows
                    if on_progress is not None:
                        on_progress(start, total)
        except WorkerLost as error:
            if error.index < 0 or error.index in looker.lost:
                raise
            looker.lost[error.index] = error.reason


def _chunks(looker: Looker, start: int, total: int, workers: int, timeout: float) -> Generator[list[Row], None, None]:
    tasks = ((first, min(first + CHUNK, total)) for first in range(start, total, CHUNK))
    if not workers:
        for task in tasks:
            with one_thread():
                rows = looker(task)
            yield rows
        return
    pool = Workers(looker, tasks, workers, prefetch=2, timeout=timeout, name_of=partial(name_of, looker.source))
    try:
        while (rows := pool.next()) is not None:
            if isinstance(rows, Failure):
                raise MaemmError(rows.text)
            yield rows
    finally:
        pool.close()


class ScanState:
    """The rows of a scan in a file of JSON lines, after a header that identifies the scan.

    A file of the same scan is continued: what follows its last whole row is cut off. A file of another scan is
    replaced. Raises :class:`MaemmError` where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        self.path, self.header = Path(path), {"version": VERSION, **header}
        self.count = 0  # rows in the file
        self.replaced = False  # there was a file of another scan
        try:
            end = self._count_rows()
            if end:
                os.truncate(self.path, end)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(self.header) + "\n", encoding="utf-8")
        except OSError as error:
            raise MaemmError(
                f"cannot write the state of the check ({self.path}: {error.strerror}); choose another folder with -o"
            ) from error

    def _count_rows(self) -> int:
        """Set ``count``; -> bytes of the header and the whole rows, 0 where there is no file of this scan."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            header = file.readline()
            if _parse_line(header) != json.loads(json.dumps(self.header)):
                self.replaced = True
                return 0
            end = len(header)
            for line in file:
                if _parse_line(line) is None:
                    break
                end += len(line)
                self.count += 1
        return end

    def add(self, rows: list[Row]) -> None:
        """Append rows; they survive the end of this process."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise MaemmError(
                f"cannot write the state of the check ({self.path}: {error.strerror}); free some space there"
            ) from error
        self.count += len(rows)

    def rows(self) -> Iterator[Row]:
        """All rows from the first on, read from the file."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)

    def remove(self) -> None:
        """Delete the file, once the scan is complete."""
        self.path.unlink(missing_ok=True)


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """A whole line of JSON that is an object; None for anything else."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def complete(
    state: ScanState,
    source: Source,
    modalities: Mapping[str, Modality],
    *,
    workers: int = 0,
    timeout: float = 600,
    on_progress: Progress | None = None,
    echo: Callable[[str], Any] = print,
) -> None:
    """Read all samples that ``state`` does not hold yet, and add them; see :func:`scan_rows`.

    ``echo`` gets a line where an earlier scan is resumed or replaced. Raises :class:`MaemmError` for a source without
    samples, and where another process wrote to the same file.
    """
    total = len(source)
    if not total:
        raise MaemmError("there are no samples (data.root); give a data set that is not empty")
    if state.replaced:
        echo(f"starting again: {state.path} belongs to other data, or to another recipe")
    elif state.count:
        echo(f"resuming after {state.count:,} samples that were read before")
    lists = scan_rows(source, modalities, start=state.count, workers=workers, timeout=timeout, on_progress=on_progress)
    with closing(lists):
        for rows in lists:
            state.add(rows)
    if sum(1 for _ in state.rows()) != total:
        raise MaemmError(f"two checks wrote to one file ({state.path}); remove it and run one of them")
