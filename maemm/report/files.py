"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from maemm.errors import MaemmError


def write_whole(path: Path, write: Callable[[Path], object], what: str) -> Path:
    """Call ``write`` on a name beside ``path`` and rename it; ``what`` names the file in the :class:`MaemmError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise MaemmError(f"cannot write {what} ({path}: {error.strerror}); choose another place") from error
    return path
