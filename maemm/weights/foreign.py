"""Files of others: tensors read without unpickling freely, wrappers taken off, the published layout recognised."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maemm import registry
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.weights.own import MODEL, recipe_of, some_of

_WRAPPERS = ("model", "state_dict", "module", "base_model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def kind_of(name: str | None, state: dict[str, Tensor]) -> CheckpointFormat:
    if name is not None:
        return registry.find("weights", name)()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    kinds = [registry.find("weights", one)() for one in registry.names("weights")]
    fitting = [one for one in kinds if one.match(set(shapes), shapes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise MaemmError(f"the weights fit several kinds; give kind= one of {', '.join(k.name for k in fitting)}")
    raise MaemmError(
        f"the weights fit no known kind ({len(state)} tensors: {some_of(sorted(state))}); "
        f"known: {', '.join(k.name for k in kinds)}"
    )


def read_state(path: Path) -> dict[str, Any]:
    """Tensors of a foreign file: safetensors, or a pickle of tensors and plain settings (``weights_only``)."""
    if not path.exists():
        raise MaemmError(f"no such weights: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *_paths()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise MaemmError(f"{path} holds more than tensors and is not unpickled ({reason})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MaemmError(f"{path} cannot be read as weights ({reason})") from None


def _paths() -> list[type]:
    import pathlib

    return [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath]


def strip_wrappers(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take the tensors out of wrappers (``model``, ``module``...) and drop prefixes (``module.``, ``_orig_mod.``)."""
    for _ in range(3):
        inner = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), dict)), None)
        if inner is None:
            break
        state = inner
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MaemmError("the weights hold no tensors")
    again = True
    while again:
        again = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                tensors, again = {key[len(prefix) :]: value for key, value in tensors.items()}, True
    return tensors


def config_of(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder that another library wrote beside its model.safetensors; None: it is none."""
    path = folder / "config.json"
    if not path.is_file() or recipe_of(folder / MODEL) is not None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaemmError(f"{path} cannot be read ({error}); get the whole folder") from None
    if not isinstance(config, dict):
        raise MaemmError(f"{path} holds no settings; get the whole folder")
    return config
