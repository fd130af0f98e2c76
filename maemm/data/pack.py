"""Packs: files rewritten once to a form that is faster to read, each whole or not at all.

How one file is rewritten is a plugin's matter (:class:`Packer`, role ``packs`` of the manifest). Here is what all of
them share: which files there are, worker processes, going on after an interruption, and the list of what failed.
"""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.lists import find_files
from maemm.data.pack_folder import BAD, Home, new_name
from maemm.data.workers import Failure, WorkerLost, Workers

_OURS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}  # of writing, whatever the file
_A_DAY = 86_400.0  # a file may take long; readers have watchdogs of their own

Task = tuple[int, str, str]  # number, path of the file, place of its packed form


class Packer(ABC):
    """How one file is rewritten. Keyword-only constructor parameters are its options; it travels to workers."""

    extensions: tuple[str, ...]  # of the files that it takes, in lower case

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What packed files depend on, as plain values: a folder holds files of one kind."""

    @abstractmethod
    def place(self, path: str) -> str:
        """Where the packed form of a file lies in its folder; ``path`` is relative to the files' folder."""

    @abstractmethod
    def write(self, path: Path, new: Path) -> None:
        """Rewrite the file ``path`` to ``new``, a file or folder that is not there.

        Raises ValueError or OSError for a file that cannot be read, ImportError where its reader is missing.
        """


@dataclass
class Packed:
    """What :func:`pack` did."""

    target: Path
    written: int = 0
    there: int = 0  # from an earlier run
    bad: list[BadSample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        bad = {one.id: one.reason for one in self.bad}
        return {"folder": str(self.target), "written": self.written, "there": self.there, "unreadable": bad}

    def __str__(self) -> str:
        there = f", {self.there:,} were there" if self.there else ""
        bad = f", {len(self.bad):,} unreadable (list: {self.target / BAD})" if self.bad else ""
        return f"{self.written:,} files packed{there}{bad} -> {self.target}"


def pack(
    source: str | os.PathLike,
    target: str | os.PathLike,
    packer: Packer,
    *,
    workers: int = 0,
    on_progress: Callable[[int, int], object] | None = None,
) -> Packed:
    """Rewrite every file below ``source`` (or one file) to ``target``; those that are there already are left alone.

    Unreadable files are counted, and named in ``target/bad_samples.jsonl``; the same call again tries them anew.
    ``workers``: processes; 0: this one. ``on_progress(done, all)``. Raises :class:`MaemmError` where there is nothing
    to pack, for a ``target`` that holds or may hold other things, and when it cannot be written.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    folder, paths = _files(source, packer)
    if folder.resolve() == target.resolve() or folder.resolve() in target.resolve().parents:
        raise MaemmError(f"the packed files would lie among those to pack ({target}); choose another folder")
    done = Packed(target)
    with Home(target, {"source": printable(str(folder.resolve())), **packer.about()}) as home:
        tasks = _tasks(paths, target, packer, done)
        left = len(paths) - len(tasks)
        try:
            for number, bad in enumerate(_each(_Writer(packer, folder, target), tasks, workers)):
                done.written += bad is None
                done.bad += [bad] if bad else []
                if on_progress is not None:
                    on_progress(left + number + 1, len(paths))
        finally:
            home.note(done.bad)
    return done


def _files(source: Path, packer: Packer) -> tuple[Path, list[str]]:
    """The folder, and the paths of files below it."""
    if not source.exists():
        raise MaemmError(f"there is nothing to pack ({source} does not exist); check the path")
    if not source.is_dir():
        return source.parent, [source.name]
    paths = find_files(source, packer.extensions)
    if not paths:
        endings = " ".join(packer.extensions)
        raise MaemmError(f"there is nothing to pack (no file below {source} ends in {endings}); check the path")
    return source, paths


def _tasks(paths: list[str], target: Path, packer: Packer, done: Packed) -> list[Task]:
    """The files that are left to do; the others are entered in ``done``."""
    tasks: list[Task] = []
    taken: dict[str, str] = {}
    for number, path in enumerate(paths):
        place = packer.place(path)
        if taken.setdefault(place, path) != path:
            reason = f"its packed form would have the name of that of {taken[place]}; rename one"
            done.bad.append(BadSample(number, printable(path), printable(reason)))
        elif (target / place).exists():
            done.there += 1
        else:
            tasks.append((number, path, place))
    return tasks


def _each(writer: _Writer, tasks: list[Task], workers: int) -> Iterator[BadSample | None]:
    """Do the tasks: what was wrong with each, in order."""
    if not workers:
        yield from map(writer, tasks)
        return
    names = {number: printable(path) for number, path, _ in tasks}
    first = 0
    while first < len(tasks):
        pool = Workers(
            writer, tasks[first:], min(workers, len(tasks)), prefetch=2, timeout=_A_DAY, name_of=names.__getitem__
        )
        try:
            while first < len(tasks):
                found = pool.next()
                if isinstance(found, Failure):
                    raise MaemmError(found.text)
                first += 1
                yield found
        except WorkerLost as error:  # another pool goes on with the rest
            if error.index < 0 or error.index in writer.lost:
                raise
            writer.lost[error.index] = error.reason
        finally:
            pool.close()


class _Writer:
    """Packs one file after the other, in a worker or in this process."""

    at: Any = None  # in a worker, where it shows the number of the file

    def __init__(self, packer: Packer, folder: Path, target: Path):
        self.packer, self.folder, self.target = packer, folder, target
        self.lost: dict[int, str] = {}  # number of a file that killed a worker -> reason

    def __call__(self, task: Task) -> BadSample | None:
        """Pack one file; -> what was wrong with it."""
        number, path, place = task
        if number in self.lost:
            return BadSample(number, printable(path), self.lost[number])
        if self.at is not None:
            self.at.fill_(number)
        try:
            self._write(self.folder / path, self.target / place)
        except ImportError as error:
            raise MaemmError(f"files of this kind cannot be read here ({error}); install it") from error
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise MaemmError(f"cannot write to {self.target} ({error.strerror}); make room there") from error
            return BadSample(number, printable(path), reason_of(error))
        finally:
            if self.at is not None:
                self.at.fill_(-1)
        return None

    def _write(self, path: Path, place: Path) -> None:
        if place.exists():  # written by a worker of a pool that was lost
            return
        new = place.with_name(new_name(place.name))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaemmError(f"cannot write to {place.parent} ({error.strerror}); give access to it") from error
        try:
            self.packer.write(path, new)
            os.replace(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True) if new.is_dir() else new.unlink(missing_ok=True)
