"""Bytes from elsewhere, kept in files on this machine, up to a limit of their size together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from pathlib import Path

from maemm.contract.errors import MaemmError
from maemm.data.shards.storage import Range

_FOLDERS = 256  # each keeps its part of the limit, so that no process ever has to look through all files
_TEMPORARY = ".tmp"


class Cache:
    """A folder of ranges of files, shared by processes and runs; the oldest are removed beyond ``limit`` bytes.

    ``version`` is part of every name: what was cached of other shards is never returned. A file appears whole or not at
    all, and its CRC-32 is compared when it is read. A full disk ends caching, not the run.
    """

    def __init__(self, folder: Path, limit: int, version: str):
        self.folder, self.limit, self.version = folder, limit, version
        self._added = [0] * _FOLDERS  # bytes that this process has added to each folder since it looked
        self._full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaemmError(f"the cache cannot be made ({folder}: {error.strerror}); choose another folder") from error

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
        if self._full:
            return
        path = self._path(part)
        new = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
        try:
            path.parent.mkdir(exist_ok=True)
            new.write_bytes(data)
            os.replace(new, path)
        except OSError:
            self._full = True
            with contextlib.suppress(OSError):
                new.unlink()
            return
        number = int(path.parent.name, 16)
        self._added[number] += len(data)
        if self._added[number] > self.limit // _FOLDERS // 16:
            self._added[number] = 0
            self._trim(path.parent)

    def drop(self, part: Range) -> None:
        """Forget the bytes."""
        with contextlib.suppress(OSError):
            self._path(part).unlink()

    def _path(self, part: Range) -> Path:
        text = f"{self.version}\x1f{part.name}\x1f{part.start}\x1f{part.stop}"
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.folder / f"{int(name[:4], 16) % _FOLDERS:02x}" / name

    def _trim(self, folder: Path) -> None:
        """Remove the files that were not used for longest until an eighth of the folder's limit is free."""
        files = []
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process removed it
                    status = entry.stat()
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        limit = self.limit // _FOLDERS
        size = sum(size for _, size, _ in files)
        if size <= limit:
            return
        for _, length, path in sorted(files):
            if size <= limit * 7 // 8:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            size -= length
