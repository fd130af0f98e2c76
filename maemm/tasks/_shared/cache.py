"""Features that were computed once: kept under a name that follows from the weights, the data and the choices."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from maemm.data.bad_samples import BadSample
from maemm.tasks._shared.feature_files import arrays_of, is_features
from maemm.tasks._shared.features import Features

FORMAT = 1  # raise it whenever what the files hold changes
LARGEST = 4 << 30  # bytes; more is computed anew each time


def folder_for(what: Any) -> Path:
    """``features/`` in a run folder; for weights of another place the user's cache folder."""
    path = Path(what) if isinstance(what, (str, os.PathLike)) else None
    if path is not None and (path / "checkpoints").is_dir():
        return path / "features"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "maemm" / "features"


def cached(folder: Path, about: Any, make: Callable[[], dict[str, Features]]) -> dict[str, Features]:
    """What ``make`` returned for the same ``about`` before, or now. A cache that cannot be written is none."""
    text = json.dumps([FORMAT, about], sort_keys=True)
    path = folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.npz"
    if (found := _read(path)) is not None:
        return found
    found = make()
    if sum(one.x.nbytes for one in found.values()) <= LARGEST:
        _write(path, found)
    return found


def _read(path: Path) -> dict[str, Features] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        rest = json.loads(str(arrays["about"]))
    except Exception:  # missing, cut off, damaged: NumPy, zipfile and json have many words for it
        return None
    skipped = [BadSample(**one) for one in rest["skipped"]]
    classes = None if rest["classes"] is None else tuple(rest["classes"])
    ids = arrays["ids"].tolist()
    return {
        name: Features(value, arrays["labels"], ids, skipped, arrays["digests"], classes, arrays.get(f"{name}.valid"))
        for name, value in arrays.items()
        if is_features(name)
    }


def _write(path: Path, found: dict[str, Features]) -> None:
    one = next(iter(found.values()))
    rest = {"skipped": [asdict(bad) for bad in one.skipped], "classes": one.classes}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            np.savez(file, **arrays_of(found), about=np.array(json.dumps(rest)))
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
