"""Files of one point cloud -> arrays (N, columns): one module per family of formats.

The first bytes of a file decide its format if they identify it, otherwise its ending. x y z come first, then the other
columns. A truncated or broken file is an exception with a short reason, never a partial cloud. Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng

from .pick import Reading

_MODULES = {  # ending -> module of this package
    **dict.fromkeys((".npy", ".npz"), "arrays"),
    **dict.fromkeys((".txt", ".xyz", ".csv", ".pts", ".asc"), "text"),
    ".ply": "ply",
    ".pcd": "pcd",
    **dict.fromkeys((".off", ".obj", ".stl"), "mesh"),
    **dict.fromkeys((".las", ".laz"), "las"),
    **dict.fromkeys((".h5", ".hdf5"), "hdf5"),
}
_MAGIC = {
    b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"ply\n": ".ply", b"ply\r": ".ply", b"# .PCD": ".pcd",
    b"\x89HDF\r\n": ".h5", b"LASF": ".las",
}  # fmt: skip
_PACKAGES = {"mesh": "trimesh", "las": "laspy", "hdf5": "h5py"}

EXTENSIONS = tuple(_MODULES)


def read_cloud(path: str | bytes | Path, options: Reading, rng: Rng) -> np.ndarray:
    """One file -> (N, columns) of any real dtype. ``rng`` chooses points on the surface of a mesh.

    Raises ValueError or OSError with a short reason.
    """
    path = os.fsdecode(path)
    ending = _ending(path)
    if ending not in _MODULES:
        raise ValueError(f"unknown format of point cloud ({os.path.splitext(path)[1] or 'no ending'})")
    reader = _module(_MODULES[ending])
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are counted and refused later
            return options.drop_nonfinite(reader.read(path, options, rng))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # libraries raise many types for broken files
        raise ValueError(f"broken {ending} file ({type(error).__name__}: {' '.join(str(error).split())})") from error


def need(endings: Iterable[str]) -> None:
    """Raise :class:`MaemmError` with the command to run if files with these endings need a missing package."""
    for ending in sorted(set(endings)):
        package = _PACKAGES.get(_MODULES.get(ending, ""))
        if package is None:
            continue
        try:
            importlib.import_module(package)
        except ImportError:
            raise MaemmError(
                f"{ending} files need the package {package!r}, which is not installed; run: pip install 'maemm[points]'"
            ) from None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        raise ValueError(f"reading it needs the package {error.name!r}; run: pip install 'maemm[points]'") from None


def _ending(path: str) -> str:
    with open(path, "rb", opener=_open_nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        start = file.read(16)
    if not start:
        raise ValueError("empty file (0 bytes)")
    ending = next((ending for magic, ending in _MAGIC.items() if start.startswith(magic)), None)
    return ending or os.path.splitext(path)[1].lower()


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block until it has a writer
