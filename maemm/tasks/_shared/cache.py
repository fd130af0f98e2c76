"""A cache of features, under a name that follows from the weights, the data and the options of the embedding."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from maemm.config.paths import expanded
from maemm.data.bad_samples import BadSample
from maemm.tasks._shared.feature_files import arrays_of, is_features, save_npz
from maemm.tasks._shared.features import Features
from maemm.weights.checkpoints import run_of

FORMAT = 1  # raise it whenever what the files hold changes
LARGEST = 4 << 30  # bytes; larger features are not cached


def folder_for(weights: Any) -> Path:
    """``features/`` in a run folder; for other weights the user's cache folder."""
    path = run_of(expanded(weights)) if isinstance(weights, (str, os.PathLike)) else None
    if path is not None and (path / "checkpoints").is_dir():
        return path / "features"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "maemm" / "features"


def cached(folder: Path, about: Any, compute: Callable[[], dict[str, Features]]) -> dict[str, Features]:
    """The cached result of ``compute`` for ``about`` (JSON: all that it depends on), or its result now.

    A file that cannot be read or written counts as absent.
    """
    text = json.dumps([FORMAT, about], sort_keys=True)
    path = folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.npz"
    stored = _read(path)
    if stored is not None:
        return stored
    by_modality = compute()
    if sum(features.x.nbytes for features in by_modality.values()) <= LARGEST:
        _write(path, by_modality)
    return by_modality


def _read(path: Path) -> dict[str, Features] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(str(arrays["about"]))
    except Exception:  # missing, cut off, damaged: NumPy, zipfile and json raise many kinds
        return None
    skipped = [BadSample(**bad) for bad in about["skipped"]]
    classes = None if about["classes"] is None else tuple(about["classes"])
    ids = arrays["ids"].tolist()
    return {
        name: Features(value, arrays["labels"], ids, skipped, arrays["digests"], classes, arrays.get(f"{name}.valid"))
        for name, value in arrays.items()
        if is_features(name)
    }


def _write(path: Path, by_modality: dict[str, Features]) -> None:
    first = next(iter(by_modality.values()))
    about = {"skipped": [asdict(bad) for bad in first.skipped], "classes": first.classes}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            save_npz(file, {**arrays_of(by_modality), "about": np.array(json.dumps(about))})
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
