"""The modality of the suite's toy plugin, its source and its sample set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maemm.contract import Source
from maemm.contract.grid import GridModality
from maemm.contract.options import PositiveInt
from maemm.contract.patches import patchify
from maemm.contract.rng import Rng
from maemm.data.arrays import open_arrays
from maemm.testing.toy import SIGNAL


class Signal(GridModality):
    """A map of 8 x 8 elements in 16 patches.

    Options
        size: sides of the map
        patch: sides of a patch
        gaps: values may be missing
    """

    def __init__(self, *, size: PositiveInt = 8, patch: PositiveInt = 2, gaps: bool = False):
        super().__init__(size=size, patch=patch, channels=2, gaps=gaps)

    def side_input(self, name: str, loaded: Mapping[str, Any], rng: Rng | None) -> Tensor:
        """``codes``: one of four classes for each patch, by the sign of the mean of each channel."""
        if name != "codes":
            return super().side_input(name, loaded, rng)
        patches = patchify(loaded["x"].nan_to_num()[None], self.patch)[0]
        first, second = patches.unflatten(-1, (-1, self.channels)).mean(1).unbind(-1)
        return (first > 0).long() + 2 * (second > 0).long()


def open_signals(root: str | None, list: str | None = None, *, name: str = SIGNAL) -> Source:
    """Maps in .npy files.

    Options
        name: the modality that the samples are for
    """
    return open_arrays(root, list, name)


def write(root: Path) -> None:
    """Write twelve maps in two classes."""
    for index in range(12):
        folder = Path(root) / ("even", "odd")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index:02d}.npy", np.random.default_rng(index).normal(size=(2, 8, 8)).astype(np.float32))
