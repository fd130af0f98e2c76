"""HDF5 files with h5py: one cloud (N, C), or many (n, N, C) with labels, as ModelNet40 and ScanObjectNN."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from maemm.config.paths import check_regular
from maemm.contract.rng import Rng

from .arrays import POINT_KEYS, single_cloud
from .pick import Reading

_KEYS = ("data", *POINT_KEYS)


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """The only cloud of a file."""
    with open_file(path) as file:
        data = points_of(file)
        if data.ndim == 3 and len(data) > 1:
            raise ValueError(f"it holds {len(data)} clouds; give it as data.root, or in a folder of such files")
        return single_cloud(data[()], options)


def open_file(path: str) -> Any:
    """An open file. Raises OSError or ValueError."""
    try:
        check_regular(path)
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())[:100]
        raise ValueError(f"not a readable HDF5 file ({reason})") from None


def points_of(file: Any) -> Any:
    """The dataset of points: one with a usual name, or the only one of 2 or 3 dimensions. Raises ValueError."""
    sets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
    key = next((key for key in _KEYS if key in sets), None)
    if key is None:
        candidates = [name for name, item in sets.items() if item.ndim in (2, 3) and item.dtype.kind in "fiu"]
        if len(candidates) != 1:
            raise ValueError(f"cannot tell which dataset holds the points ({', '.join(sets) or 'none'})")
        key = candidates[0]
    if sets[key].dtype.kind not in "fiu":
        raise ValueError(f"dataset {key!r} holds {sets[key].dtype}, not real numbers")
    return sets[key]
