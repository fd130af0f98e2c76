"""Pictures of CIFAR-10 as one file of JPEG bytes, small enough to be taken along, and as arrays to train on.

The file has ``jpeg`` (bytes of all pictures, one after the other), ``offset`` (N + 1), ``label`` (N), ``train`` (N
bools) and ``classes``; that of the whole set, from which :func:`small_file` makes it, ``number`` within the class too.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from _evidence_process import Place


def small_file(source: Path, out: Path, mebibytes: float) -> dict[str, int]:
    """Write as many pictures of each class as fit, five to learn from for each to test with; returns their numbers."""
    with np.load(source) as stored:
        data = {key: stored[key] for key in ("jpeg", "offset", "label", "train", "number", "classes")}
    sizes = np.diff(data["offset"])
    for each in range(5000, 0, -25):
        chosen = data["number"] < np.where(data["train"], each, each // 5)
        if sizes[chosen].sum() + 32 * chosen.sum() + 4096 < mebibytes * 2**20:
            break
    rows = np.flatnonzero(chosen)
    files = [data["jpeg"][data["offset"][row] : data["offset"][row + 1]] for row in rows]
    _write(out, files, data["label"][rows], data["train"][rows], data["classes"])
    return {"train": int(data["train"][rows].sum()), "test": int((~data["train"][rows]).sum())}


def _write(out: Path, files: list[np.ndarray], label: np.ndarray, train: np.ndarray, classes: np.ndarray) -> None:
    offset = np.concatenate([[0], np.cumsum([len(file) for file in files])])
    with out.open("wb") as file:
        np.savez(file, jpeg=np.concatenate(files), offset=offset, label=label, train=train, classes=classes)


def made_up_file(out: Path, each: int = 12) -> None:
    """A tiny file of two classes, dark and light pictures, for a trial of all this without the data."""
    from PIL import Image

    generator, files, label, train = np.random.default_rng(0), [], [], []
    for number in range(4 * each):
        pixels = np.clip(60 + 130 * (number % 2) + 30 * generator.standard_normal((32, 32, 3)), 0, 255)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
        label.append(number % 2)
        train.append(number < 3 * each)
    _write(out, files, np.array(label, np.uint8), np.array(train), np.array(["dark", "light"]))


def unpacked(settings: dict[str, Any], place: Place) -> dict[str, Path]:
    """{"train": file, "test": file} of pixels ``x`` (N, 32, 32, 3) and labels ``y``, shuffled; written once."""
    from PIL import Image

    folder = place.work / "cifar"
    paths = {part: folder / f"{part}.npz" for part in ("train", "test")}
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(settings["file"]) if settings.get("file") else folder / "made_up.npz"
        if not settings.get("file"):
            made_up_file(file)
        with np.load(file) as stored:
            jpeg, offset, label, train_rows = (stored[key] for key in ("jpeg", "offset", "label", "train"))
        for part, mask in (("train", train_rows), ("test", ~train_rows)):
            rows = np.random.default_rng(0).permutation(np.flatnonzero(mask))
            x = [np.asarray(Image.open(io.BytesIO(jpeg[offset[row] : offset[row + 1]].tobytes()))) for row in rows]
            np.savez(paths[part], x=np.stack(x), y=label[rows].astype(np.int64))
        (folder / "whole").touch()
    return paths
