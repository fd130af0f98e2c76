"""A few synthetic samples as ordinary files: for tests, and to try the recipe before there are data."""

from pathlib import Path

import numpy as np

from .modality import PlugName


def write(root: Path) -> None:
    """Write ``root/fast/00.npy`` and so on: waves of two frequencies, float32, of the modality's default size."""
    modality = PlugName()
    random = np.random.default_rng(0)
    for kind, frequency in (("fast", 0.9), ("slow", 0.3)):
        folder = Path(root) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(16):
            positions = np.indices(modality.size).reshape(len(modality.size), -1)
            direction = random.normal(size=len(positions))
            wave = np.sin(frequency * direction @ positions / np.linalg.norm(direction) + random.uniform(0, 6))
            sample = np.broadcast_to(wave.reshape(modality.size), (modality.channels, *modality.size))
            np.save(folder / f"{index:02d}.npy", sample.astype(np.float32))
