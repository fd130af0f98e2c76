"""Folders of other libraries: config.json, and weights in one file or in several with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maemm.config.paths import check_regular
from maemm.contract.errors import MaemmError
from maemm.weights.describe import printable, some_of
from maemm.weights.files import metadata_of, read_file

CONFIG = "config.json"
#: what transformers writes, the preferred one first
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
)  # fmt: skip
_OTHERS = ("tf_model.h5", "flax_model.msgpack")  # of TensorFlow and JAX
_LARGEST_TEXT = 50_000_000  # bytes of JSON


def weights_of(folder: Path) -> Path | None:
    """The weights in a folder of another library; None if it is no such folder.

    Raises :class:`MaemmError` where it is, but holds no weights that can be read.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None and (folder / CONFIG).is_file():
        _json(folder / CONFIG)
        others = [name for name in _OTHERS if (folder / name).exists()]
        reason = f"only {', '.join(others)}, for another framework" if others else f"none of {', '.join(WEIGHTS)}"
        raise MaemmError(f"the folder has a config.json but no weights ({folder}: {reason}); get the whole folder")
    if path is not None and path.name == WEIGHTS[0]:
        # Without a config.json it is a checkpoint folder, ours or one that a user put together.
        return path if (folder / CONFIG).is_file() and "maemm" not in metadata_of(path) else None
    return path


def config_beside(path: Path) -> dict[str, Any] | None:
    """The config.json beside weights that have the name transformers gives them; None if there is none.

    Raises :class:`MaemmError` where the file cannot be read.
    """
    config = path.parent / CONFIG
    return _json(config) if path.name in WEIGHTS and config.is_file() else None


def read_library_weights(path: Path) -> Any:
    """The content of one file, or the tensors of all files that an index names."""
    if path.name not in WEIGHTS or path.suffix != ".json":
        return read_file(path).value
    shards = _json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise MaemmError(f"the index names no files ({path}); get the whole folder")
    state: dict[str, Any] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise MaemmError(f"the index names a file outside its folder ({path}: {printable(name)}); get it again")
        content = read_file(path.parent / name).value
        expected = {key for key, shard in shards.items() if shard == name}
        if not isinstance(content, dict) or set(content) != expected:
            different = sorted(map(str, set(content) ^ expected)) if isinstance(content, dict) else []
            raise MaemmError(
                f"{path.parent / name} does not hold what the index says ({some_of(different)}); get the whole folder"
            )
        state |= content
    return state


def _json(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)
        if path.stat().st_size > _LARGEST_TEXT:
            raise ValueError("it is too large")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = printable(getattr(error, "strerror", None) or str(error), 120)
        raise MaemmError(f"{path} cannot be read ({reason}); get the whole folder") from None
    if not isinstance(values, dict):
        raise MaemmError(f"{path} holds no settings; get the whole folder")
    return values
