"""The folder of a pack: what it holds, one process that writes to it, and no half files left behind."""

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
from maemm.data.bad_samples import BadSample

RECORD, BAD = ".pack.json", "bad_samples.jsonl"
_NEW = ".new"
_WAIT_S = 6.0  # workers of a killed run end within two seconds


def new_name(name: str) -> str:
    """What a file is called until it is whole: hidden, so that no source takes it for a sample."""
    return f".{name}{_NEW}"


class Home:
    """A context in which this process alone writes to ``folder``, which holds packs of one kind.

    ``about``: what the packed files depend on. Entering raises :class:`MaemmError` for a folder of other things, for
    one that another process writes to, and where nothing can be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder, self.about = folder, json.loads(json.dumps(about))
        self._file: Any = None

    def __enter__(self) -> Home:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strange = not (self.folder / RECORD).exists() and any(self.folder.iterdir())
            if strange:
                raise MaemmError(f"{self.folder} holds other files; choose a folder that is empty or not there")
            self._file = (self.folder / RECORD).open("a+", encoding="utf-8")
        except OSError as error:
            raise MaemmError(f"cannot write to {self.folder} ({error.strerror}); choose another folder") from error
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
            self._file.close()  # which gives up the lock

    def note(self, bad: Iterable[BadSample]) -> None:
        """Replace the list of files that could not be read; without any there is no list."""
        path, text = self.folder / BAD, "".join(json.dumps(asdict(one)) + "\n" for one in bad)
        try:
            if text:
                beside = path.with_name(new_name(path.name))
                beside.write_text(text, encoding="utf-8")
                os.replace(beside, path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MaemmError(f"cannot write {path} ({error.strerror}); make room there") from error

    def _lock(self) -> None:
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
        """Raise where the folder's record says something else; write it where there is none."""
        self._file.seek(0)
        try:
            known = json.loads(self._file.read())
        except ValueError:  # new, or cut off by a power cut before anything was packed
            self._file.truncate(0)
            self._file.write(json.dumps(self.about) + "\n")
            self._file.flush()
            return
        if known != self.about:
            known = known if isinstance(known, dict) else {}
            what = next(key for key in {**self.about, **known} if known.get(key) != self.about.get(key))
            raise MaemmError(
                f"{self.folder} holds a pack of another kind ({what}: {known.get(what)} -> {self.about.get(what)}); "
                "choose another folder, or delete it"
            )

    def _clear(self) -> None:
        """Remove what an interrupted run, or a worker that died, left half done."""
        for folder, folders, files in os.walk(self.folder):
            for name in [one for one in folders if _is_new(one)]:
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
                folders.remove(name)
            for name in filter(_is_new, files):
                Path(folder, name).unlink(missing_ok=True)


def _is_new(name: str) -> bool:
    return name.startswith(".") and name.endswith(_NEW)
