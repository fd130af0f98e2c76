"""Data to train on, of the sizes that files of published data sets have, written in seconds; of no meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Write = Callable[[Path, np.random.Generator, bool], None]


def _smooth(generator: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: a coarse pattern with some noise, which takes about as long to decode as photos."""
    from PIL import Image

    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse) + generator.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def _picture(path: Path, generator: np.random.Generator, tiny: bool) -> None:
    from PIL import Image

    size = (80, 60) if tiny else (500, 375)
    Image.fromarray(_smooth(generator, *size)).save(path.with_suffix(".jpg"), quality=90)


def _video(path: Path, generator: np.random.Generator, tiny: bool) -> None:
    from maemm_plugins.video.samples import write_video

    (width, height), frames = ((64, 64), 20) if tiny else ((320, 240), 80)
    picture = _smooth(generator, width + frames, height)
    write_video(path.with_suffix(".mp4"), np.stack([picture[:, at : at + width] for at in range(frames)]))


def _sound(path: Path, generator: np.random.Generator, tiny: bool) -> None:
    from maemm_plugins.audio.samples import write_wav

    write_wav(path.with_suffix(".wav"), 0.1 * generator.standard_normal(16000 * (2 if tiny else 10)), 16000)


def _cloud(path: Path, generator: np.random.Generator, tiny: bool) -> None:
    points = generator.standard_normal((256 if tiny else 8192, 3)).astype(np.float32)
    np.save(path.with_suffix(".npy"), points / np.linalg.norm(points, axis=1, keepdims=True))


WRITERS: dict[str, Write] = {"image": _picture, "video": _video, "audio": _sound, "pointcloud": _cloud}


COUNTS = {"image": 128, "video": 16, "audio": 32, "pointcloud": 128}


def folder(kind: str, work: Path, *, tiny: bool) -> Path:
    """A folder with a few files of a kind (8, where ``tiny``); written once."""
    root = work / f"{kind}{'-tiny' if tiny else ''}"
    if not (root / "whole").exists():
        generator = np.random.default_rng(0)
        (root / "files").mkdir(parents=True, exist_ok=True)
        for number in range(8 if tiny else COUNTS[kind]):
            WRITERS[kind](root / "files" / f"{number:04d}", generator, tiny)
        (root / "whole").touch()
    return root / "files"
