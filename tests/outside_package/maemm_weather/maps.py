"""The modality, its source and its sample set."""

import numpy as np

from maemm.contract import Preprocessed
from maemm.contract.grid import GridModality
from maemm.data.arrays import open_arrays

Sides = tuple[int, int, int]
GAP = -9999.0  # what weather services write where a sensor said nothing; our files have NaN


class Weather(GridModality):
    """Maps of two sensors (B, 2, hours, rows, columns). A patch with a gap is neither seen nor predicted.

    Options
        size: hours, rows and columns that the model sees
        patch: hours, rows and columns of a patch
        mean: subtracted from all values
        std: then divided by
    """

    axes = 3

    def __init__(
        self, *, size: Sides = (8, 8, 8), patch: Sides = (2, 4, 4), mean: float = 0.0, std: float = 1.0, **grid
    ):
        super().__init__(size=size, patch=patch, channels=2, **grid)
        self.mean, self.std = mean, std

    def load(self, raw, rng):
        if np.isnan(raw).mean() > 0.5:
            raise ValueError("is mostly gaps")
        return super().load(np.nan_to_num(raw, nan=GAP), rng)

    def preprocess(self, raw, rng):
        x = raw["x"].float()
        gaps = x == GAP
        return Preprocessed(((x - self.mean) / self.std).masked_fill(gaps, 0), ~gaps.any(1))


def open_weather(root: str | None, list: str | None = None, *, name: str = "weather"):
    """Maps in .npy and .npz files.

    Options
        name: the modality that the samples are for
    """
    return open_arrays(root, list, name)


def write(root):
    """Write 16 made-up maps: a front that moves, with a gap."""
    for index in range(16):
        place, hour = np.random.default_rng(index), np.arange(8)[:, None, None]
        front = np.sin(0.8 * np.arange(8) + 0.5 * hour + place.uniform(0, 6)) + 0.1 * place.normal(size=(2, 8, 8, 8))
        front[:, :2, :4, :4] = np.nan if index % 2 else front[:, :2, :4, :4]
        (root / ("calm", "storm")[index % 2]).mkdir(parents=True, exist_ok=True)
        np.save(root / ("calm", "storm")[index % 2] / f"{index:02d}.npy", front.astype(np.float32))


def write_radar(root):
    """Write 12 made-up clips: showers that drift, 3 % of the pixels missing."""
    y, x = np.mgrid[:64, :64]
    for index in range(12):
        random = np.random.default_rng(index)
        centres, drift = random.uniform(0, 64, (3, 2)), random.uniform(-2, 2, 2)
        clip = np.stack(
            [
                sum(40 * np.exp(-((y - a - t * drift[0]) ** 2 + (x - b - t * drift[1]) ** 2) / 80) for a, b in centres)
                for t in range(8)
            ]
        )
        clip[random.random(clip.shape) < 0.03] = np.nan
        (root / "rain").mkdir(parents=True, exist_ok=True)
        np.save(root / "rain" / f"{index:02d}.npy", clip[None].astype(np.float32))
