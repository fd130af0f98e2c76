"""The folder of a pack: its settings, a lock so that one process writes to it, and removal of incomplete files."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_text
from maemm.data.bad_samples import BadSample

RECORD, BAD = ".pack.json", "bad_samples.jsonl"
_NEW = ".new"
_TEMPORARY = (_NEW, ".tmp")  # the second is that of ``atomic.write_whole``
_WAIT_S = 6.0  # workers of a killed run end within two seconds


def new_name(name: str) -> str:
    """The temporary name of a file that is being written: hidden, so that no source reads it as a sample."""
    return f".{name}{_NEW}"


class PackFolder:
    """A context manager in which only this process writes packed files to ``folder``.

    ``about``: the settings that the packed files depend on. Entering raises :class:`MaemmError` for a folder that holds
    other files or files packed with other settings, for one that another process writes to, and where nothing can be
    written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder, self.about = folder, json.loads(json.dumps(about))
        self._file: Any = None

    def __enter__(self) -> PackFolder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / RECORD).exists() and any(self.folder.iterdir()):
                raise MaemmError(f"{self.folder} holds other files; choose an empty or a new folder")
            self._file = (self.folder / RECORD).open("a+", encoding="utf-8")
        except (OSError, ValueError) as error:  # the latter: a NUL in its name
            reason = getattr(error, "strerror", None) or error
            raise MaemmError(f"cannot write to {self.folder} ({reason}); choose another folder") from error
        try:
            self._lock()
            self._compare()
        except BaseException:
            self._file.close()
            raise
        self._clear()
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._clear()
        finally:
            self._file.close()  # which releases the lock

    def write_bad(self, bad: Iterable[BadSample]) -> None:
        """Replace the list of files that could not be read; remove it where there are none."""
        path, text = self.folder / BAD, "".join(json.dumps(asdict(sample)) + "\n" for sample in bad)
        try:
            if text:
                write_text(path, text, "the list of unreadable files", advice="make room there")
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MaemmError(f"cannot write {path} ({error.strerror}); make room there") from error

    def _lock(self) -> None:
        # flock, unlike the lock of a run folder, is inherited by forked workers: those of a killed run hold it until
        # they end, and no other run clears away what they still write.
        try:
            import fcntl
        except ImportError:  # Windows
            return
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise MaemmError(
                        f"another process packs into {self.folder}; wait for it, or choose another folder"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                return

    def _compare(self) -> None:
        """Raise where the settings recorded in the folder differ; record them where there are none."""
        self._file.seek(0)
        try:
            recorded = json.loads(self._file.read())
        except ValueError:  # new, or cut off by a power cut before anything was packed
            self._file.truncate(0)
            self._file.write(json.dumps(self.about) + "\n")
            self._file.flush()
            return
        if recorded != self.about:
            old = recorded if isinstance(recorded, dict) else {}
            differs = next(key for key in {**self.about, **old} if old.get(key) != self.about.get(key))
            raise MaemmError(
                f"{self.folder} holds a pack with other settings ({differs}: {old.get(differs)} -> "
                f"{self.about.get(differs)}); choose another folder, or delete it"
            )

    def _clear(self) -> None:
        """Remove the incomplete files of an interrupted run, or of a worker that died."""
        for folder, folders, files in os.walk(self.folder):
            for name in [name for name in folders if _is_new(name)]:
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
                folders.remove(name)
            for name in filter(_is_new, files):
                Path(folder, name).unlink(missing_ok=True)


def _is_new(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY)
