"""HDF5 files through h5py: one cloud (N, C), or many (n, N, C) with labels as ModelNet40 and ScanObjectNN have them."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from maemm.contract.rng import Rng

from .arrays import POINT_KEYS, one_cloud
from .pick import Reading

_KEYS = ("data", *POINT_KEYS)


def read(path: str, how: Reading, rng: Rng) -> np.ndarray:
    """The only cloud of a file."""
    with open_file(path) as file:
        data = points_of(file)
        if data.ndim == 3 and len(data) > 1:
            raise ValueError(f"it holds {len(data)} clouds; give it as data.root, or in a folder of such files")
        return one_cloud(data[()], how)


def open_file(path: str) -> Any:
    """An open file. Raises OSError or ValueError."""
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:  # the cause is long and inside brackets
        raise ValueError(f"no readable HDF5 file ({' '.join(str(error).split())[:100]})") from None


def points_of(file: Any) -> Any:
    """The dataset of points: by its name, or the only one with enough dimensions."""
    sets = {name: one for name, one in file.items() if isinstance(one, h5py.Dataset)}
    key = next((key for key in _KEYS if key in sets), None)
    if key is None:
        fit = [name for name, one in sets.items() if one.ndim in (2, 3) and one.dtype.kind in "fiu"]
        if len(fit) != 1:
            raise ValueError(f"cannot tell which dataset holds the points ({', '.join(sets) or 'none'})")
        key = fit[0]
    if sets[key].dtype.kind not in "fiu":
        raise ValueError(f"dataset {key!r} holds {sets[key].dtype}, not real numbers")
    return sets[key]
