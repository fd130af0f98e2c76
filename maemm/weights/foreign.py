"""Weights of other code: read files safely, remove wrappers, detect the checkpoint format."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maemm import registry
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.weights.own import MODEL, read_header, some_of

_WRAPPERS = ("model", "state_dict", "module", "base_model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# what published settings hold besides numbers and texts
_PLAIN_TYPES: list[Any] = [argparse.Namespace, PosixPath, PurePosixPath, WindowsPath, PureWindowsPath]


def detect_format(kind: str | None, state: dict[str, Tensor]) -> CheckpointFormat:
    """The checkpoint format called ``kind``, or if None the one that matches the keys and shapes of ``state``.

    Raises :class:`MaemmError` where none matches, or several do.
    """
    if kind is not None:
        return registry.find("weights", kind)()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    formats: list[CheckpointFormat] = [registry.find("weights", name)() for name in registry.names("weights")]
    matches = [candidate for candidate in formats if candidate.match(set(shapes), shapes)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(match.name for match in matches)
        raise MaemmError(f"the weights match several kinds of checkpoint; give kind= one of {names}")
    names = ", ".join(candidate.name for candidate in formats)
    raise MaemmError(
        f"the weights match no kind of checkpoint ({len(state)} tensors: {some_of(sorted(state))}); known: {names}"
    )


def read_state(path: Path) -> dict[str, Any]:
    """The content of a file of other code: safetensors, or a pickle of tensors and plain settings (``weights_only``).

    Raises :class:`MaemmError` for a file that is missing, unreadable, or holds other Python objects.
    """
    if not path.exists():
        raise MaemmError(f"no such weights: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_PLAIN_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise MaemmError(f"{path} holds more than tensors and is not unpickled ({reason})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MaemmError(f"{path} cannot be read as weights ({reason})") from None


def strip_wrappers(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors inside wrappers (``model``, ``module``...), without prefixes (``module.``, ``_orig_mod.``).

    Raises :class:`MaemmError` where there are none.
    """
    for _ in range(3):
        inner = next((state[wrapper] for wrapper in _WRAPPERS if isinstance(state.get(wrapper), dict)), None)
        if inner is None:
            break
        state = inner
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MaemmError("the weights hold no tensors")
    while shared := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(shared): value for key, value in tensors.items()}
    return tensors


def read_library_config(folder: Path) -> dict[str, Any] | None:
    """The config.json that another library wrote beside its model.safetensors; None if this is no such folder.

    Raises :class:`MaemmError` where the file cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file() or read_header(folder / MODEL) is not None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaemmError(f"{path} cannot be read ({error}); get the whole folder") from None
    if not isinstance(config, dict):
        raise MaemmError(f"{path} holds no settings; get the whole folder")
    return config
