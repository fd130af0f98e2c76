"""A few synthetic samples as ordinary files: for tests, and to try the recipe before there are data."""

from pathlib import Path

import numpy as np

SHAPE = (1, 32, 32)


def write(root: Path) -> None:
    """Write ``root/fast/00.npy`` and so on: waves of two frequencies, float32, of the default size."""
    random = np.random.default_rng(0)
    for kind, frequency in (("fast", 0.9), ("slow", 0.3)):
        folder = Path(root) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(16):
            positions = np.indices(SHAPE[1:]).reshape(len(SHAPE) - 1, -1)
            direction = random.normal(size=len(positions))
            wave = np.sin(frequency * direction @ positions / np.linalg.norm(direction) + random.uniform(0, 6))
            np.save(folder / f"{index:02d}.npy", np.broadcast_to(wave.reshape(SHAPE[1:]), SHAPE).astype(np.float32))
