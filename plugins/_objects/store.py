"""Writing a sample set once, whole or not at all, also when several processes start together."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from maemm.contract.errors import MaemmError

MARK = ".maemm-samples.json"  # says what the folder holds; written last


def write_once(root: str | Path, what: dict[str, object], fill: Callable[[Path], None]) -> None:
    """Call ``fill(folder)`` on a temporary folder and rename it to ``root``; do nothing where that has been done.

    ``what`` (kind, version, seed, ...) names the content: a folder with another one is an error, and so is a
    folder with foreign files. Raises :class:`MaemmError`.
    """
    root = Path(root)
    if _complete(root, what):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise MaemmError(f"cannot write the sample set ({root}: {error.strerror}); choose another folder") from error
    try:
        beside.chmod(0o777 & ~_umask())  # mkdtemp is private, ordinary folders are not
        fill(beside)
        (beside / MARK).write_text(json.dumps(what, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _rename(beside, root, what)
    except OSError as error:
        raise MaemmError(f"cannot write the sample set ({root}: {error.strerror}); free space or move it") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _rename(beside: Path, root: Path, what: dict[str, object]) -> None:
    try:
        os.rename(beside, root)  # replaces an empty folder, refuses a filled one
    except OSError:
        if not _complete(root, what):  # another process was not faster either
            raise


def _complete(root: Path, what: dict[str, object]) -> bool:
    """Is the set there? False: nothing is. Raises where something else is."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise MaemmError(f"the sample set needs a folder, and a file is there ({root}); choose another folder")
    try:
        found = json.loads((root / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(root.iterdir()):
            raise MaemmError(f"the folder holds files that are no sample set ({root}); choose another one") from None
        return False
    except ValueError:
        found = None
    if found != what:
        raise MaemmError(f"the folder holds the sample set of another version ({root}); delete it to write it anew")
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
