"""Files that appear whole or not at all: written under a temporary name beside the final one, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from maemm.contract.errors import MaemmError

# What a full disk raises: the system itself, torch around it, safetensors around it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def write_whole(
    path: Path,
    write: Callable[[Path], object],
    description: str,
    *,
    advice: str = "choose another folder",
    sync: bool = False,
) -> Path:
    """Call ``write`` with a temporary path beside ``path``, then rename that file to ``path``; returns ``path``.

    Missing parent folders are created, and the temporary file is removed in any case. ``sync``: wait until the data are
    on the disk, so that the file is whole after a power failure too. Raises :class:`MaemmError` where the file cannot
    be written: "cannot write DESCRIPTION (PATH: cause); ADVICE".
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if sync:
            fsync(temporary)
        os.replace(temporary, path)
        if sync:
            fsync(path.parent)
    except WRITE_ERRORS as error:
        raise MaemmError(f"cannot write {description} ({path}: {cause_of(error)}); {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def write_text(path: Path, text: str, description: str, **options: Any) -> Path:
    """:func:`write_whole` for text, encoded as UTF-8; ``options`` are its keyword arguments."""
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"), description, **options)


def write_json(path: Path, value: Any, description: str, **options: Any) -> Path:
    """:func:`write_text` for JSON, indented by 1, with a final line break. NaN and infinity raise ValueError."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", description, **options)


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk.

    Folders that cannot be synced (Windows, some network file systems) are left as they are.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows syncs only what may be written
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not folder:
            raise
    finally:
        os.close(descriptor)


def usual_permissions(file: Path) -> None:
    """Give ``file`` the permissions of a new file in its folder; safetensors writes files only the owner may read."""
    new = file.with_name(f".{file.name}.{os.getpid()}.permissions")
    new.touch()
    try:
        file.chmod(new.stat().st_mode)
    finally:
        new.unlink()


def cause_of(error: BaseException) -> str:
    """Why something could not be written or read, in one line."""
    for cause in (error, error.__context__):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
