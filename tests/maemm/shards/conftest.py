"""Small data sets of every modality, and shards of them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of two classes, one of them broken, and two whose names differ in the ending alone."""
    folder, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(37):
        path = folder / ("dog" if number % 2 else "cat") / f"a.{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (24, 24, 3), np.uint8)).save(path)
    Image.fromarray(numbers.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / "dog" / "same.png")
    Image.fromarray(numbers.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / "dog" / "same.jpg")
    (folder / "cat" / "broken.png").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in five shards."""
    from maemm.tasks.data.pack import data_shards

    folder = tmp_path_factory.mktemp("shards") / "pictures"
    data_shards(pictures, folder, samples=9, workers=0)
    return folder


def write_sound(path: Path, seed: int) -> None:
    """Half a second of noise."""
    values = np.random.default_rng(seed).integers(-(2**14), 2**14, 8000).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
