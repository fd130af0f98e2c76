"""Rain radar: clips with holes, on the generic grid with its option ``gaps``."""

from typing import Any

from torch import Tensor

from maemm.contract import Preprocessed, Source
from maemm.contract.grid import GridModality
from maemm.contract.rng import Rng
from maemm.data.arrays import open_arrays

Sides = tuple[int, int, int]


class Radar(GridModality):
    """Clips of reflectivity (B, 1, time, rows, columns) in dBZ; pixels that the radar does not see are NaN.

    Options
        size: frames, rows and columns that the model sees
        patch: frames, rows and columns of a patch
        mean: subtracted from all values
        std: then divided by
        gaps: pixels may be missing
    """

    axes = 3

    def __init__(
        self,
        *,
        size: Sides = (8, 64, 64),
        patch: Sides = (2, 8, 8),
        mean: float = 15.0,
        std: float = 15.0,
        gaps: bool = True,
        **grid: Any,
    ):
        super().__init__(size=size, patch=patch, gaps=gaps, **grid)
        self.mean, self.std = mean, std

    def preprocess(self, raw: dict[str, Tensor], rng: Rng | None) -> Preprocessed:
        return super().preprocess({"x": (raw["x"].float() - self.mean) / self.std}, rng)

    def denormalize_input(self, signal: Tensor) -> Tensor:
        return signal * self.std + self.mean


def open_radar(root: str | None, list: str | None = None, *, name: str = "radar") -> Source:
    """Clips in .npy and .npz files.

    Options
        name: the modality that the samples are for
    """
    return open_arrays(root, list, name)
