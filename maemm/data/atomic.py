"""Files that appear whole or not at all, with the permissions that files have here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from maemm.contract.errors import MaemmError

# What a full disk raises: the system itself, torch around it, safetensors around it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def write_whole(path: Path, write: Callable[[Path], object], what: str) -> Path:
    """Call ``write`` on a name beside ``path`` and rename it; ``what`` names the file in the :class:`MaemmError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        os.replace(beside, path)
    except WRITE_ERRORS as error:
        raise MaemmError(f"cannot write {what} ({path}: {cause_of(error)}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return path


def usual_permissions(file: Path) -> None:
    """The permissions that a new file has in this folder; safetensors come readable by their owner alone."""
    new = file.with_name(f".{file.name}.{os.getpid()}.permissions")
    new.touch()
    try:
        file.chmod(new.stat().st_mode)
    finally:
        new.unlink()


def cause_of(error: BaseException) -> str:
    """Why something could not be written or read, in one line."""
    for one in (error, error.__context__):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
