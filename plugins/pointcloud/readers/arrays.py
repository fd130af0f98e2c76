"""NumPy files: .npy files are memory-mapped, so that only the points in use are read; of .npz, the array of points."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from maemm.contract.rng import Rng

from .pick import Reading

POINT_KEYS = ("points", "pointcloud", "point_cloud", "xyz", "pos", "x", "data", "vertices", "arr_0")


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """One cloud (N, C), stored as (N, C) or (1, N, C)."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            file.seek(0)
            with load(file) as archive:
                cloud = archive[point_key(archive)]
        else:
            cloud = load(path, mmap_mode="r")
    return single_cloud(cloud, options)


def single_cloud(cloud: np.ndarray, options: Reading) -> np.ndarray:
    """An array (N, C) or (1, N, C) -> the chosen columns (N, C). Raises ValueError for other arrays."""
    if cloud.ndim == 3 and len(cloud) == 1:
        cloud = cloud[0]
    if cloud.ndim != 2:
        raise ValueError(f"a point cloud has 2 dimensions (points, columns), this array has shape {cloud.shape}")
    if cloud.dtype.names:
        raise ValueError(f"the array has named fields ({', '.join(cloud.dtype.names)}); store plain numbers")
    return cloud if options.columns is None else cloud[:, options.choose_columns(None, cloud.shape[1])]


def load(file: Any, **options: Any) -> Any:
    """``numpy.load`` without pickle; errors other than OSError become ValueError with a short reason."""
    try:
        return np.load(file, allow_pickle=False, **options)
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib, tokenize and NumPy raise many types
        raise ValueError(short(error)) from error


def short(error: BaseException) -> str:
    """The reason why an array cannot be read, in a few words."""
    text = " ".join(str(error).split())
    if any(word in text for word in ("Object arrays", "Python objects", "pickled")):
        return "it holds Python objects, which may run code; save plain numbers with NumPy"
    if isinstance(error, zipfile.BadZipFile):
        return f"broken archive ({text})"
    return text or type(error).__name__


def point_key(archive: Any) -> str:
    """The name of the array of points in a .npz file: a usual name, or the only array. Raises ValueError."""
    names = list(archive.files)
    key = next((key for key in POINT_KEYS if key in names), None)
    if key is None and len(names) == 1:
        key = names[0]
    if key is None:
        raise ValueError(f"cannot tell which array holds the points ({', '.join(names) or 'none'}); call it 'points'")
    return key
