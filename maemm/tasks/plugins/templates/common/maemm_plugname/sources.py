"""Where plugname samples come from."""

from maemm.contract import Source
from maemm.data.arrays import open_arrays


def open_plugname(root: str | None, list: str | None = None, *, name: str = "plugname") -> Source:
    """Arrays: a folder or a list of .npy and .npz files with a sample each, or one file with all samples.

    For other files, write ``def read(path)`` that returns a NumPy array and raises for a broken file, and return
    ``open_arrays(root, list, name, read=read, endings=(".xyz",))``.

    Options
        name: the modality that the samples are for
    """
    return open_arrays(root, list, name)
