"""A few synthetic samples as ordinary files: for tests, and to try the recipe before there are data."""

from pathlib import Path

import numpy as np


def write(root: Path) -> None:
    """Write ``root/inside/00.npy`` and so on: 20 to 40 elements (x, y, z, feature), float32."""
    random = np.random.default_rng(0)
    for kind, sign in (("inside", 1), ("outside", -1)):
        folder = Path(root) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(16):
            coords = random.normal(size=(random.integers(20, 41), 3))
            feature = sign * np.exp(-np.square(coords).sum(1, keepdims=True) / 2)
            np.save(folder / f"{index:02d}.npy", np.hstack([coords, feature]).astype(np.float32))
