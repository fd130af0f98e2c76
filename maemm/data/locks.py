"""Locks: one process at a time writes a file, or in a folder.

The system frees them when a process ends, however it ends: nothing stale is left to be deleted by hand.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from glob import escape
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.main_guard import refuse_in_child

P = ParamSpec("P")
R = TypeVar("R")

LOCK = ".lock"  # in a folder that one process at a time writes to
# How C's struct flock lies in memory, on systems of 64 bits.
_FLOCK = {
    "linux": ("hhqqi4x", ("type", "whence", "start", "length", "pid")),
    "darwin": ("qqihh", ("start", "length", "pid", "type", "whence")),
}
_WAIT_S = 0.5  # within which the holder of a lock has written who it is
_held: set[str] = set()  # lock files of this process: record locks keep other processes out, not other threads
_held_lock = threading.Lock()


@contextmanager
def locked(
    path: Path,
    title: str,
    *,
    advice: str,
    log: Callable[[str], Any],
    user: str = "process",
    remove: bool = False,
) -> Iterator[None]:
    """Hold the lock file ``path`` within the block; ``title``: what it guards, ``user``: who else may hold it.

    A record lock (``lockf``), since forked workers do not inherit it: after ``kill -9`` it is free at once.
    ``remove``: delete the file at the end. Raises :class:`MaemmError` that names the process which has the lock, or
    where the file cannot be made ("cannot write to TITLE (...); ADVICE"). Where there are no such locks (Windows, some
    network file systems) it logs so and continues.
    """
    refuse_in_child()
    try:
        key = os.path.realpath(path)
    except ValueError as error:  # a NUL character
        raise MaemmError(f"cannot write to {title!r} ({error}); {advice}") from error
    with _held_lock:
        if key in _held:
            raise MaemmError(f"{title} is in use by this process (pid {os.getpid()}); wait for it, or stop it")
        _held.add(key)
    try:
        with _opened(path, title, advice, log, user) as file:
            file.seek(0)
            file.truncate()
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                if remove:
                    with contextlib.suppress(OSError):
                        path.unlink()
    finally:
        _held.discard(key)


@contextmanager
def folder_locked(folder: Path, *, user: str, log: Callable[[str], Any]) -> Iterator[None]:
    """Make ``folder`` and keep other writers out of it within the block, see :func:`locked`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter: a NUL in its name
        reason = getattr(error, "strerror", None) or error
        raise MaemmError(f"cannot make the {user} folder ({folder}: {reason}); choose another out=") from None
    with locked(folder / LOCK, str(folder), advice="choose another out=", log=log, user=user):
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file ``path``, which is not touched; False where that cannot be told."""
    try:
        if os.path.realpath(path) in _held:  # opening and closing it here would free the lock
            return True
        import fcntl

        layout, kind = _FLOCK[sys.platform]
        with path.open("rb") as file:
            asked = struct.pack(layout, *[{"type": fcntl.F_WRLCK}.get(name, 0) for name in kind])
            answer = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        return bool(answer[kind.index("type")] != fcntl.F_UNLCK)
    except (ImportError, KeyError, OSError, ValueError):
        return False


def _opened(path: Path, title: str, advice: str, log: Callable[[str], Any], user: str) -> IO[str]:
    """The lock file, locked, unless there are no locks."""
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  closing it would free the lock
        except OSError as error:
            raise MaemmError(f"cannot write to {title} ({path}: {error.strerror}); {advice}") from None
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            raise MaemmError(f"{title} is in use by another {user}{holder}; wait for it, or stop it") from None
        except (ImportError, OSError) as error:
            log(f"{title} cannot be locked ({error}); take care to start one at a time")
            return file
        except BaseException:
            file.close()
            raise
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # who had the lock has removed the file in the meantime


def _holder(file: IO[str]) -> str:
    """Who has a lock, in brackets, or nothing; between taking a lock and writing who it is there is a moment."""
    until = time.monotonic() + _WAIT_S
    while True:
        file.seek(0)
        text = file.read().strip()
        if text:
            return f" ({text})"
        if time.monotonic() > until:
            return ""
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- one file
@contextmanager
def one_writer(out: Path, log: Callable[[str], Any] = print) -> Iterator[None]:
    """Within the block only this process writes the file or folder ``out``; a second writer is refused.

    What a killed writer of ``out`` has left behind half written is removed. Missing parent folders are made, and
    removed again if nothing was written to them. Raises :class:`MaemmError`.
    """
    if not out.name or out.name == "..":
        raise MaemmError(f"{out} is a folder; give a name in it")
    _refuse_special(out)
    made: list[Path] = []
    parent = out.parent
    while not parent.exists():
        made.append(parent)
        parent = parent.parent
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaemmError(f"cannot write {out} ({error.strerror}); choose another path") from None
    try:
        lock = out.with_name(f".{out.name}.lock")
        with locked(lock, str(out), advice="choose another path", log=log, remove=True):
            for left in out.parent.glob(f".{escape(out.name)}.*.tmp"):
                if left.is_file():
                    left.unlink(missing_ok=True)
            yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails unless it is empty


def _refuse_special(out: Path) -> None:
    """Raises :class:`MaemmError` for a pipe or a device: a file would take its place, also that of ``/dev/null``."""
    try:
        mode = out.stat().st_mode
    except (OSError, ValueError):  # there is nothing yet, or what is wrong is told when it is written
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MaemmError(f"cannot write {out} (it is a pipe or a device, not a file); choose another path")


def writes(parameter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: calls hold :func:`one_writer` of the path in ``parameter``; None: nothing is written there."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            out = bound.arguments[parameter]
            if out is None:
                return function(*args, **kwargs)
            with one_writer(expanded(out)):
                return function(*args, **kwargs)

        return call

    return decorate
