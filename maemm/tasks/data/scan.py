"""``maemm data check``: read everything once, note what is there, and lose nothing when interrupted.

What was seen is appended to a state file, a line of JSON for each sample in the order of the source. The same check
started again goes on behind its last whole line, so that an interrupted check ends like one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
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
CHUNK = 8  # samples that a worker takes at a time, and at most as many per worker are read twice after a kill


def look_at(
    source: Source,
    modalities: Mapping[str, Modality],
    *,
    start: int = 0,
    workers: int = 0,
    timeout: float = 600,
    on_progress: Progress | None = None,
) -> Iterator[list[Row]]:
    """Rows (see :class:`~maemm.tasks._shared.sample_facts.Looker`) of the samples from ``start`` on, in order, some at
    a time.

    A sample over which a worker dies, or takes longer than ``timeout`` seconds, gets that as its reason. Raises
    :class:`MaemmError` where a worker is lost between two samples.
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


def _chunks(looker: Looker, start: int, total: int, workers: int, timeout: float) -> Iterator[list[Row]]:
    tasks = ((first, min(first + CHUNK, total)) for first in range(start, total, CHUNK))
    if not workers:
        for task in tasks:
            with one_thread():
                rows = looker(task)
            yield rows
        return
    name = partial(name_of, looker.source)
    pool = Workers(looker, tasks, workers, prefetch=2, timeout=timeout, name_of=name)
    try:
        while (rows := pool.next()) is not None:
            if isinstance(rows, Failure):
                raise MaemmError(rows.text)
            yield rows
    finally:
        pool.close()


class State:
    """The rows of a check in a file of JSON lines, below a header that says which check it is."""

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        self.path, self.header = Path(path), {"version": VERSION, **header}
        self.done = 0  # rows that are there already
        self.began_anew = False  # there was one of another check
        self._open()

    def add(self, rows: list[Row]) -> None:
        """Append rows; they survive the process, whatever ends it."""
        self._write("".join(json.dumps(row) + "\n" for row in rows))
        self.done += len(rows)

    def rows(self) -> Iterator[Row]:
        """All rows from the first on."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)

    def remove(self) -> None:
        """Delete the file: the check is complete."""
        self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        """Count the whole rows of an interrupted check and cut off what follows them, or begin anew."""
        try:
            end = self._counted()
            if end:
                os.truncate(self.path, end)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.header) + "\n", encoding="utf-8")
        except OSError as error:
            raise MaemmError(
                f"cannot write what was seen ({self.path}: {error.strerror}); choose another place with -o"
            ) from error

    def _counted(self) -> int:
        """Bytes of the header and the whole rows; 0 where there is no state of this check."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            header = file.readline()
            if _object(header) != json.loads(json.dumps(self.header)):
                self.began_anew = True
                return 0
            end = len(header)
            for line in file:
                if _object(line) is None:
                    break
                end += len(line)
                self.done += 1
        return end

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise MaemmError(f"cannot write what was seen ({self.path}: {error.strerror}); make room there") from error


def _object(line: bytes) -> dict[str, Any] | None:
    """A whole line of JSON as an object; None for anything else."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def run(
    source: Source,
    modalities: Mapping[str, Modality],
    state: State,
    *,
    workers: int = 0,
    timeout: float = 600,
    on_progress: Progress | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Look at all samples that ``state`` does not hold yet."""
    total = len(source)
    if not total:
        raise MaemmError("there are no samples (data.root); give a data set that is not empty")
    if state.began_anew:
        say(f"beginning anew: {state.path} belongs to other data, or to another recipe")
    elif state.done:
        say(f"going on behind {state.done:,} samples that were seen before")
    seen = look_at(source, modalities, start=state.done, workers=workers, timeout=timeout, on_progress=on_progress)
    with closing(seen):
        for rows in seen:
            state.add(rows)
    if sum(1 for _ in state.rows()) != total:
        raise MaemmError(f"two checks wrote to one file ({state.path}); remove it and run one of them")
