"""Bytes from elsewhere, kept in files on this machine, up to a limit of their size together."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import time
import zlib
from itertools import count
from pathlib import Path

from maemm.contract.errors import MaemmError
from maemm.data.say import say
from maemm.data.shards.storage import Range

_FOLDERS = 256
_GROUP = 2**28  # bytes: folders are looked through in groups, each of which keeps its part of the limit
_NEW = ".new"  # holds what is being written
_OLD_S = 3600.0  # a file is written within seconds; one of another machine that is older was left by a killed run
_NUMBERS = count()


class Cache:
    """A folder of ranges of files, shared by processes and runs; the oldest are removed beyond ``limit`` bytes.

    ``version`` is part of every name: what was cached of other shards is never returned. A file appears whole or not at
    all, and its CRC-32 is compared when it is read. A full disk, or a folder that cannot be written, ends caching, not
    the run.
    """

    def __init__(self, folder: Path, limit: int, version: str):
        self.folder, self.limit, self.version = folder, limit, version
        # No process looks through all files of a large cache, and a small one still has room for large files.
        self.groups = next(
            groups for groups in (256, 128, 64, 32, 16, 8, 4, 2, 1) if groups * _GROUP <= limit or groups == 1
        )
        self._full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaemmError(f"the cache cannot be made ({folder}: {error.strerror}); choose another folder") from error
        self._clear_dead()

    def get(self, part: Range, check: int) -> bytes | None:
        """The bytes, where they are here and right."""
        path = self._path(part)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if zlib.crc32(data) != check:
            self.drop(part)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, part: Range, data: bytes) -> None:
        """Keep the bytes."""
        limit = self.limit // self.groups
        if self._full or len(data) > limit * 3 // 4:
            return
        path = self._path(part)
        new = self.folder / _NEW / f"{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        try:
            path.parent.mkdir(exist_ok=True)
            new.parent.mkdir(exist_ok=True)
            new.write_bytes(data)
            os.replace(new, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            if error.errno != errno.ENOENT:  # that is of a folder that somebody removes: the next may be kept
                self._full = True
                say(f"warning: the cache keeps nothing more ({self.folder}: {error.strerror}); the run goes on")
            return
        # Whenever a 32nd of the limit was added somebody looks, on average, however many processes share the cache.
        if int(path.name[8:16], 16) * limit < 32 * len(data) * 2**32:
            self._trim(int(path.parent.name, 16) % self.groups)

    def drop(self, part: Range) -> None:
        """Forget the bytes."""
        with contextlib.suppress(OSError):
            self._path(part).unlink()

    def _path(self, part: Range) -> Path:
        text = f"{self.version}\x1f{part.name}\x1f{part.start}\x1f{part.stop}"
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.folder / f"{int(name[:4], 16) % _FOLDERS:02x}" / name

    def _trim(self, group: int) -> None:
        """Remove the files of a group that were not used for longest until a quarter of its limit is free."""
        files = []
        for number in range(group, _FOLDERS, self.groups):
            with contextlib.suppress(OSError), os.scandir(self.folder / f"{number:02x}") as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # another process removed it
                        status = entry.stat()
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        limit = self.limit // self.groups
        size = sum(size for _, size, _ in files)
        if size <= limit * 7 // 8:  # what others add before they look is rarely more than the rest
            return
        for _, length, path in sorted(files):
            if size <= limit * 3 // 4:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            size -= length

    def _clear_dead(self) -> None:
        """Remove what killed processes were writing."""
        with contextlib.suppress(OSError), os.scandir(self.folder / _NEW) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if _is_dead(entry.name) or time.time() - entry.stat().st_mtime > _OLD_S:
                        os.unlink(entry.path)


def _is_dead(name: str) -> bool:
    """Whether the process that writes a file was of this machine and has ended."""
    host, _, process = name.rpartition(".")[0].rpartition(".")
    if host != socket.gethostname() or not Path("/proc/self").exists():
        return False
    return not Path("/proc", process).exists()
