"""Packs: files rewritten once to a form that is faster to read, each whole or not at all.

A plugin says how one file is rewritten (:class:`Packer`, role ``packs`` of the manifest). This module has what all of
them share: finding the files, worker processes, resuming after an interruption, and the list of failures.
"""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.lists import find_files
from maemm.data.pack_folder import BAD, PackFolder, new_name
from maemm.data.workers import Failure, WorkerLost, Workers

WRITE_ERRNOS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}  # errors of the target folder, not of one file
_TIMEOUT_S = 86_400.0  # a day: a file may take long, and readers have timeouts of their own

Task = tuple[int, str, str]  # number, path of the file, path of its packed form in the target folder


class Packer(ABC):
    """Rewrites one file. Its keyword-only constructor parameters are its options; it is sent to workers (pickled)."""

    extensions: tuple[str, ...]  # of the files that it reads, in lower case

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The settings that packed files depend on, as JSON values: all files of a pack have the same."""

    @abstractmethod
    def place(self, path: str) -> str:
        """The path of the packed file in the target folder, for the file ``path`` relative to the source folder."""

    @abstractmethod
    def write(self, path: Path, new: Path) -> None:
        """Rewrite the file ``path`` to ``new``, a file or folder that does not exist yet.

        Raises ValueError or OSError for a file that cannot be read, ImportError where a package is missing.
        """


@dataclass
class Packed:
    """The result of :func:`pack`."""

    target: Path
    written: int = 0
    there: int = 0  # files packed by an earlier run
    bad: list[BadSample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        bad = {sample.id: sample.reason for sample in self.bad}
        return {"folder": str(self.target), "written": self.written, "there": self.there, "unreadable": bad}

    def __str__(self) -> str:
        there = f", {self.there:,} existed" if self.there else ""
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
    """Rewrite every file below ``source`` (or one file) to ``target``; existing packed files are kept.

    Unreadable files are counted, and listed in ``target/bad_samples.jsonl``; the next call tries them again.
    ``workers``: number of processes; 0: this one. ``on_progress(done, all)``. Raises :class:`MaemmError` where there is
    nothing to pack, for a ``target`` that holds other files or lies in ``source``, and when it cannot be written.
    """
    source, target = expanded(source), expanded(target)
    folder, paths = _files(source, packer)
    if folder.resolve() == target.resolve() or folder.resolve() in target.resolve().parents:
        raise MaemmError(f"the packed files would be among those to pack ({target}); choose another folder")
    done = Packed(target)
    with PackFolder(target, {"source": printable(str(folder.resolve())), **packer.about()}) as pack_folder:
        tasks = _tasks(paths, target, packer, done)
        skipped = len(paths) - len(tasks)
        try:
            for number, bad in enumerate(results(_Writer(packer, folder, target), tasks, workers)):
                if bad is None:
                    done.written += 1
                else:
                    done.bad.append(bad)
                if on_progress is not None:
                    on_progress(skipped + number + 1, len(paths))
        finally:
            pack_folder.write_bad(done.bad)
    files = done.written + done.there + len(done.bad)
    if files != len(paths):
        raise MaemmError(f"{files:,} of {len(paths):,} files were packed ({target}); the same command continues")
    return done


def _files(source: Path, packer: Packer) -> tuple[Path, list[str]]:
    """(folder, paths of the files to pack, relative to it)."""
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
    """The files that are not packed yet; the others are entered in ``done``."""
    tasks: list[Task] = []
    taken: dict[str, str] = {}
    for number, path in enumerate(paths):
        packed = packer.place(path)
        if taken.setdefault(packed, path) != path:
            reason = f"its packed file would have the same name as that of {taken[packed]}; rename one"
            done.bad.append(BadSample(number, printable(path), printable(reason)))
        elif (target / packed).exists():
            done.there += 1
        else:
            tasks.append((number, path, packed))
    return tasks


class TaskWriter(Protocol):
    """What :func:`results` calls, in this process or in workers."""

    at: Any  # in a worker the tensor that shows the number of the task, see ``workers.Reader``
    lost: dict[int, str]  # {number of a task that ended a worker: reason}

    def __call__(self, task: Task) -> Any:
        """Do one task."""
        ...


def results(writer: TaskWriter, tasks: list[Task], workers: int) -> Iterator[Any]:
    """Do the tasks, in ``workers`` processes (0: this one); yields what ``writer`` returns for each, in order."""
    if not workers:
        yield from map(writer, tasks)
        return
    names = {number: printable(path) for number, path, _ in tasks}
    first = 0
    while first < len(tasks):
        pool = Workers(
            writer, tasks[first:], min(workers, len(tasks)), prefetch=2, timeout=_TIMEOUT_S, name_of=names.__getitem__
        )
        try:
            while first < len(tasks):
                result = pool.next()
                if isinstance(result, Failure):
                    raise MaemmError(result.text)
                first += 1
                yield result
        except WorkerLost as error:  # another pool continues with the rest
            if error.index < 0 or error.index in writer.lost:
                raise
            writer.lost[error.index] = error.reason
        finally:
            pool.close()


class _Writer:
    """Packs one file per call, in a worker or in this process."""

    at: Any = None  # in a worker the tensor that shows the number of the file, see ``workers.Reader``

    def __init__(self, packer: Packer, folder: Path, target: Path):
        self.packer, self.folder, self.target = packer, folder, target
        self.lost: dict[int, str] = {}  # {number of a file that killed a worker: reason}

    def __call__(self, task: Task) -> BadSample | None:
        """Pack one file; -> what was wrong with it, or None."""
        number, path, packed = task
        if number in self.lost:
            return BadSample(number, printable(path), self.lost[number])
        if self.at is not None:
            self.at.fill_(number)
        try:
            self._write(self.folder / path, self.target / packed)
        except ImportError as error:
            raise MaemmError(f"files of this kind cannot be read here ({error}); install it") from error
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in WRITE_ERRNOS:
                raise MaemmError(f"cannot write to {self.target} ({error.strerror}); make room there") from error
            return BadSample(number, printable(path), reason_of(error))
        finally:
            if self.at is not None:
                self.at.fill_(-1)
        return None

    def _write(self, path: Path, packed: Path) -> None:
        if packed.exists():  # written by a worker of a pool that was lost
            return
        new = packed.with_name(new_name(packed.name))
        try:
            packed.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaemmError(f"cannot write to {packed.parent} ({error.strerror}); give access to it") from error
        try:
            self.packer.write(path, new)
            os.replace(new, packed)
        finally:
            if new.is_dir():
                shutil.rmtree(new, ignore_errors=True)
            else:
                new.unlink(missing_ok=True)
