"""Files on a disk, a web server or object storage, read by range and with patience."""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maemm.config.paths import expanded
from maemm.contract.errors import DataLost, MaemmError, NotInstalled
from maemm.data.bad_samples import reason_of
from maemm.data.say import say

_SILENT_S = 5.0  # of failing, before a line says that the run waits
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 15.0  # between tries; each is twice the one before, and a random part of it
_REQUEST_S = 60.0  # that one request may take
#: Errors that another try does not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
_TRANSIENT_STATUS = (408, 425, 429)  # of those in 400 .. 499, where the request itself is at fault


class Range(NamedTuple):
    """Bytes ``start`` .. ``stop`` - 1 of a file, named relative to the root."""

    name: str
    start: int
    stop: int


class Storage:
    """Files below ``root``: a folder, or a URL that fsspec knows (``https://``, ``s3://``, ``gs://``, ``hf://``).

    ``options``: of fsspec's file system, such as ``{key: ..., secret: ..., endpoint_url: ...}``. ``patience``: seconds
    for which a request that fails is tried again, with growing pauses; then :class:`DataLost` is raised. A file that
    does not exist, or may not be read, raises OSError at once. It can be sent to other processes.
    """

    def __init__(self, root: str, *, options: Mapping[str, Any] | None = None, patience: float = 300.0):
        self.root, self.patience, self.options = root.rstrip("/") or "/", patience, dict(options or {})
        if self.root.endswith(":"):
            raise MaemmError(f"{root} names no bucket or server (data.root); write {root}NAME")
        self.is_local = not is_url(root) or root.startswith("file://")
        if self.is_local:
            self.root = str(expanded(root.removeprefix("file://")))
        self._system: tuple[int, Any] | None = None  # the process that its connections belong to

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None}

    @property
    def system(self) -> Any:
        """fsspec's file system. Raises :class:`MaemmError` where its package is missing."""
        if self._system is None or self._system[0] != os.getpid():
            import fsspec

            protocol = "file" if self.is_local else self.root.split("://")[0]
            try:
                options = _with_timeouts(protocol, self.options)
                self._system = os.getpid(), fsspec.filesystem(protocol, skip_instance_cache=True, **options)
                _OPENED.append(weakref.ref(self._system[1]))
            except ImportError as error:
                raise NotInstalled(
                    f"reading {protocol}:// needs a package that is not installed ({self.root}: {error}); "
                    "pip install 'maemm[cloud]'"
                ) from error
            except ValueError as error:
                raise MaemmError(f"{protocol}:// is no known storage ({self.root}); use https, s3, gs or hf") from error
        return self._system[1]

    def path(self, name: str) -> str:
        """What fsspec calls the file ``name``; a name that is a URL itself stays."""
        return name if "://" in name or name.startswith("/") else f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self._patiently(lambda: self.system.cat_file(self.path(name)), name)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | OSError]:
        """The bytes of every range, fetched at once; an error in place of those that cannot be read.

        Raises :class:`DataLost` where the storage does not answer for ``patience`` seconds, or not with these bytes.
        """
        results: list[bytes | OSError | None] = [None] * len(ranges)
        waiting = [number for number, part in enumerate(ranges) if part.stop > part.start]
        for number in {*range(len(ranges))} - {*waiting}:
            results[number] = b""
        pauses = _Pauses(self.patience, self.root)
        while waiting:
            paths, starts, stops = zip(
                *((self.path(ranges[n].name), ranges[n].start, ranges[n].stop) for n in waiting), strict=True
            )
            answers = self._answers([*paths], [*starts], [*stops])
            failed = []
            for number, answer in zip(waiting, answers, strict=True):
                part = ranges[number]
                if isinstance(answer, bytes) and len(answer) == part.stop - part.start:
                    results[number] = answer
                elif isinstance(answer, BaseException) and _is_final(answer):
                    results[number] = answer if isinstance(answer, OSError) else OSError(reason_of(answer))
                elif isinstance(answer, bytes) and len(answer) > part.stop - part.start:
                    raise DataLost(
                        f"the server sends whole files where a range was asked for ({self.path(part.name)}); use one "
                        "that answers range requests, or copy the shards to a disk"
                    )
                elif isinstance(answer, bytes) and self._ends_before(part):
                    results[number] = OSError("the file is shorter than it was")
                else:
                    failed.append((number, _problem(answer, part)))
            waiting = [number for number, _ in failed]
            if failed and not pauses.wait(failed[0][1]):
                number, problem = failed[0]
                raise self._lost(ranges[number].name, problem)
        pauses.end()
        return results  # type: ignore[return-value]

    def info(self, name: str) -> tuple[int, str]:
        """(bytes, version) of a file. The version changes with its content, where the storage keeps one; else ''."""
        info = self._patiently(lambda: self._info(name), name)
        version = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "checksum") if info.get(key)), "")
        return int(info.get("size") or 0), version.strip('"')

    def find(self, pattern: str) -> list[str]:
        """Names of the files that fit a pattern with ``*``, sorted."""
        if self.is_local:  # the folder's own name may hold what a pattern has a meaning for
            folder = Path(self.root)
            paths = (path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
            return sorted(path.relative_to(folder).as_posix() for path in paths)
        paths = self._patiently(lambda: self.system.glob(self.path(pattern)), pattern)
        root = self.system._strip_protocol(self.root).rstrip("/") + "/"
        return sorted(self.system._strip_protocol(path).removeprefix(root) for path in paths)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        try:
            self.info(name)
        except OSError:
            return False
        return True

    def open(self, name: str) -> Any:
        """A file object for readers that seek, such as those of Parquet."""
        return self._patiently(lambda: self.system.open(self.path(name), "rb"), name)

    def _info(self, name: str) -> dict[str, Any]:
        try:
            return self.system.info(self.path(name))
        except FileNotFoundError:
            # fsspec says so of a web server that does not answer, too; reading tells the two apart.
            self.system.cat_file(self.path(name), 0, 1)
            raise

    def _ends_before(self, part: Range) -> bool:
        """Whether the file has fewer bytes: another try would give no more of them."""
        try:
            return self.info(part.name)[0] < part.stop
        except OSError:
            return False

    def _answers(self, paths: list[str], starts: list[int], stops: list[int]) -> list[Any]:
        if self.is_local:  # five times as fast as fsspec for small ranges
            return [_local(path, start, stop) for path, start, stop in zip(paths, starts, stops, strict=True)]
        try:
            answers = self.system.cat_ranges(paths, starts, stops, on_error="return")
        except Exception as error:  # of all of them
            return [error] * len(paths)
        return [bytes(answer) if isinstance(answer, bytearray | memoryview) else answer for answer in answers]

    def _patiently(self, request: Callable[[], Any], name: str) -> Any:
        pauses = _Pauses(self.patience, self.root)
        while True:
            try:
                result = request()
                pauses.end()
                return result
            except (MemoryError, MaemmError):
                raise
            except Exception as error:
                if _is_final(error):
                    raise error if isinstance(error, OSError) else OSError(reason_of(error)) from error
                if not pauses.wait(reason_of(error)):
                    raise self._lost(name, reason_of(error)) from error

    def _lost(self, name: str, problem: str) -> DataLost:
        return DataLost(
            f"the storage of the data does not answer since {self.patience:g} s ({self.path(name)}: {problem}); look "
            "at it, then start the same command again"
        )


def _local(path: str, start: int, stop: int) -> bytes | OSError:
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            os.lseek(file, start, os.SEEK_SET)
            return os.read(file, stop - start)
        finally:
            os.close(file)
    except OSError as error:
        return error


class _Pauses:
    """Growing pauses until ``patience`` seconds are over, with a line for whoever watches where they take long."""

    def __init__(self, patience: float, where: str):
        self.patience, self.where = patience, where
        self.start, self.pause, self.said = time.monotonic(), _FIRST_PAUSE_S, False

    def wait(self, problem: str) -> bool:
        """Wait; False: the time is over."""
        passed = time.monotonic() - self.start
        left = self.patience - passed
        if left <= 0:
            return False
        if passed > _SILENT_S and not self.said:
            say(
                f"waiting for the storage of the data, which does not answer ({self.where}: {problem}); it is asked "
                f"again for up to {self.patience:g} s"
            )
            self.said = True
        # Many workers fail at the same moment; they should not come back at the same moment. No sample depends on this.
        time.sleep(min(left, self.pause * random.uniform(0.5, 1.0)))
        self.pause = min(2 * self.pause, _LONGEST_PAUSE_S)
        return True

    def end(self) -> None:
        """Something came."""
        if self.said:
            say(f"the storage of the data answers again, after {time.monotonic() - self.start:.0f} s ({self.where})")


def _is_final(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return isinstance(error, _FINAL)


def _problem(answer: Any, part: Range) -> str:
    if isinstance(answer, BaseException):
        return reason_of(answer)
    return f"{len(answer):,} bytes came for the {part.stop - part.start:,} from {part.start:,} on"


def _with_timeouts(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with limits of what a request may take, and without tries of the library's own, which are silent."""
    options = dict(options)
    if protocol in ("http", "https"):
        import aiohttp

        client = {"timeout": aiohttp.ClientTimeout(total=_REQUEST_S), **options.get("client_kwargs", {})}
        return {**options, "client_kwargs": client}
    if protocol in ("s3", "s3a"):
        config = {"connect_timeout": 10, "read_timeout": _REQUEST_S, "retries": {"max_attempts": 1}}
        return {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}
    return options


# A forked process shares the event queue of its parent: a file system that it dropped would close its connections, take
# them out of that queue, and the parent would wait for their answers until its requests time out.
_OPENED: list[weakref.ref[Any]] = []
_OF_PARENTS: list[Any] = []


def _keep_those_of_parents() -> None:
    _OF_PARENTS.extend(system for reference in _OPENED if (system := reference()) is not None)
    _OPENED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_those_of_parents)


def is_url(root: str) -> bool:
    """Whether ``data.root`` names a storage rather than a path."""
    return "://" in root
