"""Latent tokens that ``maemm embed --latents`` has stored, read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.feature_files import ENDINGS, is_features


def stored_latents(path: str | os.PathLike) -> tuple[np.ndarray, list[str]] | None:
    """(latents (n, L, C), ids) of a file; None where it is no feature file, but data.

    Raises :class:`MaemmError` for a feature file without latents, and for one that cannot be read.
    """
    file = Path(path)
    if file.suffix not in ENDINGS or not file.is_file():
        return None
    reader = {".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}[file.suffix]
    try:
        read = reader(file)
    except (MaemmError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes a library do
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise MaemmError(f"{file} cannot be read ({reason}); write it again: maemm embed --latents") from error
    if read is None:
        return None
    about, arrays, ids = read
    if not about.get("latents") or len(arrays) != 1:
        raise MaemmError(f"{file} holds features, and no latent tokens; write them: maemm embed --latents -o FILE")
    return next(iter(arrays.values())), ids


_Read = tuple[Mapping[str, Any], dict[str, np.ndarray], list[str]]


def _npz(file: Path) -> _Read | None:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
        if "about" not in stored or "ids" not in stored:
            return None
        about = json.loads(str(stored["about"]))
        names = [name for name in stored.files if is_features(name)] if about.get("latents") else []
        return about, {name: stored[name] for name in names}, stored["ids"].tolist()


def _safetensors(file: Path) -> _Read | None:
    from safetensors import safe_open

    with safe_open(file, "np") as stored:
        header = stored.metadata() or {}
        if "about" not in header or "ids" not in header:
            return None
        about = json.loads(header["about"])
        names = [name for name in stored.keys() if is_features(name)] if about.get("latents") else []  # noqa: SIM118
        return about, {name: stored.get_tensor(name) for name in names}, json.loads(header["ids"])


def _parquet(file: Path) -> _Read | None:
    import pyarrow.parquet as parquet

    table = parquet.read_table(file)
    about = json.loads((table.schema.metadata or {}).get(b"maemm", b"{}"))
    shapes = {name: shape for name, shape in about.get("shapes", {}).items() if is_features(name)}
    if not shapes or "id" not in table.column_names:
        return None
    arrays = {}
    for name, shape in shapes.items() if about.get("latents") else ():
        flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        arrays[name] = np.asarray(flat, np.float32).reshape(table.num_rows, *shape)
    return about, arrays, table.column("id").to_pylist()
