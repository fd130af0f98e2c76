"""Writing a sample set once, whole or not at all, also when several processes start together."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError

from .objects import SHAPES, Object, make_objects

HOME = Path("runs/samples")  # of all sample sets: below the working directory, beside the runs
MARK = ".maemm-samples.json"  # says what the folder holds; written last


def default_root(kind: str, write: Callable[[Path], None]) -> str:
    """``data.root`` of recipes that work without data: the folder of the sample set, which ``write`` fills."""
    root = HOME / kind
    write(root)
    return str(root)


def write_objects(
    root: str | Path,
    kind: str,
    version: int,
    count: int,
    seed: int,
    write_file: Callable[[Path, Object], None],
    ending: str,
    *,
    parameters: bool = True,
    **settings: Any,
) -> None:
    """Write the first ``count`` objects of the list ``seed`` as ``root/SHAPE/0007ENDING``, once.

    ``write_file(path, object)`` writes one; ``settings`` (pixels, rate, ...) are part of what the folder must hold;
    ``parameters``: also write those of all objects, as ``.objects.json``. Raises :class:`MaemmError`.
    """

    def fill(folder: Path) -> None:
        objects = make_objects(count, seed)
        for shape in SHAPES:
            (folder / shape).mkdir()
        for thing in objects:
            write_file(folder / thing.shape / f"{thing.index:04d}{ending}", thing)
        if parameters:
            text = json.dumps([thing.record() for thing in objects])
            (folder / ".objects.json").write_text(text + "\n", encoding="utf-8")

    write_once(root, {"kind": kind, "version": version, "count": count, "seed": seed, **settings}, fill)


def write_once(root: str | Path, content: dict[str, object], fill: Callable[[Path], None]) -> None:
    """Call ``fill(folder)`` on a temporary folder and rename it to ``root``; do nothing where that has been done.

    ``content`` (kind, version, seed, ...) names what is written: a folder with another content is an error, and so is
    one with foreign files. Raises :class:`MaemmError`.
    """
    root = Path(root)
    if _is_complete(root, content):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise MaemmError(f"cannot write the sample set ({root}: {error.strerror}); choose another folder") from error
    try:
        umask = os.umask(0)  # it can only be read by setting it
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp is private, ordinary folders are not
        fill(temporary)
        (temporary / MARK).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        try:
            os.rename(temporary, root)  # replaces an empty folder, refuses a filled one
        except OSError:
            if not _is_complete(root, content):  # otherwise another process was faster
                raise
    except OSError as error:
        raise MaemmError(f"cannot write the sample set ({root}: {error.strerror}); free space or move it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(root: Path, content: dict[str, object]) -> bool:
    """Whether the set is there; False where there is nothing. Raises :class:`MaemmError` for anything else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise MaemmError(f"the sample set needs a folder, and a file is there ({root}); choose another folder")
    try:
        stored = json.loads((root / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(root.iterdir()):
            raise MaemmError(f"the folder holds files that are no sample set ({root}); choose another one") from None
        return False
    except ValueError:
        stored = None
    if stored != content:
        raise MaemmError(f"the folder holds the sample set of another version ({root}); delete it to write it anew")
    return True
