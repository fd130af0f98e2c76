"""Contents in memory -> what a plugin's source makes of a file with that content.

So every kind of file, of every plugin, is read from shards exactly as from a folder, by the same code.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import Files
from maemm.registry.make import part_of

_SHARED_MEMORY = Path("/dev/shm")
_ROOM = 2**30  # bytes that must be free there
_OWN_MEMORY = ("builtins", "numpy", "torch")  # modules of values that need no file any more
_NUMBERS = count()


@dataclass(frozen=True)
class Part:
    """How one member of a sample is read: a source, which is opened on a folder with that member alone."""

    name: str  # of the modality, or of the part where its source gives several modalities
    kind: str  # of the source
    options: Mapping[str, Any]
    endings: tuple[str, ...] | None = None  # of its members; None: NAME.ending, or the only member with content
    # Sources that serve any file of an ending, by (process, thread, ending): opening one costs more than reading a tar.
    opened: dict[tuple[int, int, str], _Opened] = field(default_factory=dict, init=False, repr=False, compare=False)

    def open(self, folder: Path) -> Source:
        """The source of a folder."""
        return registry.find("sources", self.kind)(str(folder), None, **self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": {}}


def make_part(name: str, spec: Any, where: str, *, besides: tuple[str, ...] = ("endings",)) -> Part:
    """A part from ``{type: SOURCE (default: the name), endings: [...], options}``. Raises :class:`MaemmError`."""
    kind, options = part_of(spec, default=name)
    endings = options.pop("endings", None) if "endings" in besides else None
    opener = registry.find("sources", kind)
    options = check(opener, options, where)
    if "name" in options_of(opener):
        options.setdefault("name", name)
    endings = (endings,) if isinstance(endings, str) else endings
    return Part(name, kind, options, None if endings is None else tuple(end.lower().lstrip(".") for end in endings))


class _Opened(NamedTuple):
    """A source that was opened on a folder with one file, and is used again for others that stand there in turn."""

    source: Files
    folder: Path
    lazy: bool  # whether what it returns opens the file later


def read_part(part: Part, ending: str, content: bytes | memoryview, rng: Rng) -> Mapping[str, Any]:
    """{modality: what its ``load`` expects} of one member. Raises whatever the source raises for such a file."""
    ending = ending.rpartition(".")[2]
    key = os.getpid(), threading.get_ident(), ending
    opened = part.opened.get(key)
    if opened is not None and not opened.lazy:
        return _read_again(opened, ending, content, rng)
    folder = _folder()
    try:
        (folder / f"sample.{ending}").write_bytes(content)
        if opened is not None:
            source: Source = copy.copy(opened.source)
            source.folder = os.fsencode(folder)  # type: ignore[attr-defined]
        else:
            source = _open(part, folder)
        raw = source.read(0, rng).raw
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    lazy = [value for value in raw.values() if type(value).__module__.split(".")[0] not in _OWN_MEMORY]
    if opened is None and isinstance(source, Files) and source.serves_any_file:
        part.opened[key] = _Opened(source, folder, bool(lazy))
    _remove_after(folder, lazy)
    return raw


def _open(part: Part, folder: Path) -> Source:
    try:
        source = part.open(folder)
    except MaemmError as error:
        raise ValueError(str(error).split(";")[0].replace(str(folder), "the shard")) from error
    if len(source) != 1:
        raise ValueError(f"its file holds {len(source):,} samples; store each in a file of its own")
    return source


def _read_again(opened: _Opened, ending: str, content: bytes | memoryview, rng: Rng) -> Mapping[str, Any]:
    path = f"{opened.folder}/sample.{ending}"
    os.mkdir(opened.folder)
    try:
        with open(path, "wb") as file:
            file.write(content)
        return opened.source.read(0, rng).raw
    finally:  # the next content is another file: what was returned may be a map of this one
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.rmdir(opened.folder)


def _remove_after(folder: Path, lazy: list[Any]) -> None:
    """Remove the folder once nothing reads from it: what a source returns may open its file later."""
    if not lazy:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for value in lazy:
        weakref.finalize(value, shutil.rmtree, folder, ignore_errors=True)


# ------------------------------------------------------------------------------------- folders of this process alone
_home: tuple[int, Path] | None = None  # (process, folder)


def _folder() -> Path:
    """A new, empty folder."""
    global _home
    if _home is None or _home[0] != os.getpid():
        _clear_dead()
        _home = os.getpid(), Path(tempfile.mkdtemp(prefix=f"maemm-{os.getpid()}-", dir=_place()))
        atexit.register(shutil.rmtree, _home[1], ignore_errors=True)
    folder = _home[1] / str(next(_NUMBERS))
    folder.mkdir()
    return folder


def _place() -> Path:
    """Memory, where it has room: a member is written for the moment of reading alone."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(_SHARED_MEMORY).free > _ROOM and os.access(_SHARED_MEMORY, os.W_OK):
            return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _clear_dead() -> None:
    """Remove what killed processes left."""
    for folder in _place().glob("maemm-*-*"):
        process = folder.name.split("-")[1]
        if process.isdecimal() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
