"""A few synthetic samples as ordinary files: for tests, and to try the recipe before there are data."""

from pathlib import Path

import numpy as np

from .modality import PlugName


def write(root: Path) -> None:
    """Write ``root/inside/00.npy`` and so on: 20 to 40 elements (coordinates, features), float32."""
    modality = PlugName()
    random = np.random.default_rng(0)
    for kind, sign in (("inside", 1), ("outside", -1)):
        folder = Path(root) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(16):
            coords = random.normal(size=(random.integers(20, 41), modality.coords))
            feature = sign * np.exp(-np.square(coords).sum(1, keepdims=True) / 2)
            sample = np.hstack([coords, np.repeat(feature, modality.features, 1)])
            np.save(folder / f"{index:02d}.npy", sample.astype(np.float32))
