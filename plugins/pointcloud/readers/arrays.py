"""NumPy files: .npy is mapped, so that only the points in use are read; of .npz the array of points is read."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading

POINT_KEYS = ("points", "pointcloud", "point_cloud", "xyz", "pos", "x", "data", "vertices", "arr_0")


def read(path: str, how: Reading, rng: Rng) -> np.ndarray:
    """One cloud (N, C); an array of a single cloud (1, N, C) is one too."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            file.seek(0)
            with load(file) as archive:
                cloud = archive[point_key(archive)]
        else:
            cloud = load(path, mmap_mode="r")
    return one_cloud(cloud, how)


def one_cloud(cloud: np.ndarray, how: Reading) -> np.ndarray:
    """An array as stored -> the columns asked for."""
    if cloud.ndim == 3 and len(cloud) == 1:
        cloud = cloud[0]
    if cloud.ndim != 2:
        raise ValueError(f"a point cloud has 2 dimensions (points, columns), this array has shape {cloud.shape}")
    if cloud.dtype.names:
        raise ValueError(f"the array has named fields ({', '.join(cloud.dtype.names)}); store plain numbers")
    return cloud if how.columns is None else cloud[:, how.pick(None, cloud.shape[1])]


def load(file: Any, **options: Any) -> Any:
    """``numpy.load`` that never unpickles; its many errors become ValueError with a short reason."""
    try:
        return np.load(file, allow_pickle=False, **options)
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib, tokenize and NumPy have many
        raise ValueError(short(error)) from error


def short(error: BaseException) -> str:
    """Why an array cannot be read, in a few words."""
    text = " ".join(str(error).split())
    if any(word in text for word in ("Object arrays", "Python objects", "pickled")):
        return "it holds Python objects, which may run code; save plain numbers with numpy"
    if isinstance(error, zipfile.BadZipFile):
        return f"broken archive ({text})"
    return text or type(error).__name__


def point_key(archive: Any, known: Sequence[str] = POINT_KEYS) -> str:
    """The array of points in a .npz file: by its name, or the only one there is. Raises ValueError."""
    names = list(archive.files)
    key = next((key for key in known if key in names), None)
    if key is None and len(names) == 1:
        key = names[0]
    if key is None:
        raise ValueError(f"cannot tell which array holds the points ({', '.join(names) or 'none'}); call it 'points'")
    return key
