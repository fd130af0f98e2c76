"""Paths that a user writes: ``~`` is their home folder, in recipes, on the command line and in Python alike."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OF_DATA = ("root", "list", "validation")


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` expanded. That of an unknown user (``~nobody``) stays, and is reported as missing."""
    return Path(os.path.expanduser(path))


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError for what is there and is no file: opening a pipe waits for ever, and a device has no end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))


def with_expanded_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe with ``~`` expanded in ``out``, ``init`` and the paths of its data and its monitor."""
    data = _expanded(recipe["data"], _OF_DATA)
    if data.get("mix"):
        data["mix"] = {name: _expanded(part, _OF_DATA) for name, part in data["mix"].items()}
    train = dict(recipe["train"])
    if train.get("monitor"):
        train["monitor"] = _expanded(train["monitor"], ("data",))
    return _expanded({**recipe, "data": data, "train": train}, ("out", "init"))


def _expanded(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    paths = {key: os.path.expanduser(values[key]) for key in keys if isinstance(values.get(key), str)}
    return {**values, **paths}
