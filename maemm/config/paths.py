"""Paths that a user writes: ``~`` is their home folder, in recipes, on the command line and in Python alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OF_DATA = ("root", "list", "validation")


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` expanded. That of an unknown user (``~nobody``) stays, and is reported as missing."""
    return Path(os.path.expanduser(path))


def with_expanded_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe with ``~`` expanded in ``out``, ``init`` and the paths of its data."""
    data = _expanded(recipe["data"], _OF_DATA)
    if data.get("mix"):
        data["mix"] = {name: _expanded(part, _OF_DATA) for name, part in data["mix"].items()}
    return _expanded({**recipe, "data": data}, ("out", "init"))


def _expanded(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    paths = {key: os.path.expanduser(values[key]) for key in keys if isinstance(values.get(key), str)}
    return {**values, **paths}
