"""Files of one point cloud -> arrays (N, columns): one module for each family of formats.

What a file *is* decides where its first bytes tell, its ending otherwise. x y z come first, then the other columns.
A file that cannot be read whole is an exception with a short reason, never a part of a cloud. Nothing is unpickled.
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

_MODULES = {  # ending -> module here that reads it
    **dict.fromkeys((".npy", ".npz"), "arrays"),
    **dict.fromkeys((".txt", ".xyz", ".csv", ".pts", ".asc"), "text"),
    ".ply": "ply",
    ".pcd": "pcd",
    **dict.fromkeys((".off", ".obj", ".stl"), "mesh"),
    **dict.fromkeys((".las", ".laz"), "las"),
    **dict.fromkeys((".h5", ".hdf5"), "hdf5"),
}
_STARTS = {
    b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"ply\n": ".ply", b"ply\r": ".ply", b"# .PCD": ".pcd",
    b"\x89HDF\r\n": ".h5", b"LASF": ".las",
}  # fmt: skip
_PACKAGES = {"mesh": "trimesh", "las": "laspy", "hdf5": "h5py"}

EXTENSIONS = tuple(_MODULES)


def read_cloud(path: str | bytes | Path, how: Reading, rng: Rng) -> np.ndarray:
    """One file -> (N, columns) numbers of any real type. ``rng`` chooses points on the surface of a mesh.

    Raises ValueError or OSError with a short reason.
    """
    path = os.fsdecode(path)
    ending = _ending(path)
    if ending not in _MODULES:
        raise ValueError(f"no known kind of point cloud ({os.path.splitext(path)[1] or 'no ending'})")
    reader = _module(_MODULES[ending])
    try:
        with np.errstate(all="ignore"):  # numbers that are none are refused later, with their count
            return how.finite(reader.read(path, how, rng))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file does to the libraries
        raise ValueError(f"broken {ending} file ({type(error).__name__}: {' '.join(str(error).split())})") from error


def need(endings: Iterable[str]) -> None:
    """Raise :class:`MaemmError` with the command to type if files with these endings need a missing package."""
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
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not an ordinary file")
        start = file.read(16)
    if not start:
        raise ValueError("empty file (0 bytes)")
    found = next((kind for first, kind in _STARTS.items() if start.startswith(first)), None)
    return found or os.path.splitext(path)[1].lower()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer for ever
