"""Our own weights: a safetensors file with the recipe in its header, and which file of a run folder to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions
from maemm.model.build import build_model
from maemm.model.model import Model

MODEL, EMA = "model.safetensors", "ema.safetensors"  # in a checkpoint folder: the weights, and their average
BEST = "best"  # in a run folder: the folder of the weights with the best validation metric


def fill(model: torch.nn.Module, state: dict[str, Tensor], description: str) -> None:
    """Load a state dict strictly.

    Raises :class:`MaemmError` that names missing and unexpected keys and wrong shapes. It calls the weights
    ``description``.
    """
    own = model.state_dict()
    problems = []
    for title, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if keys:
            problems.append(f"{len(keys)} {title} ({some_of(sorted(keys))})")
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape ({some_of(sorted(wrong))})")
    if problems:
        raise MaemmError(f"{description} do not fit: {'; '.join(problems)}")
    model.load_state_dict(state)


def some_of(names: list[str], count: int = 3) -> str:
    """The first names, for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# --------------------------------------------------------------------------------------------- our own files
def save(model: Model, path: str | Path) -> None:
    """Write a model as a safetensors file with the recipe in its header; :func:`maemm.load` restores it exactly."""
    header = {"maemm": json.dumps({"recipe": model.recipe, "kind": model.kind})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    state |= {f"extras/{key}": value.contiguous() for key, value in model.extras.items()}
    save_file(unshared(state), path, metadata=header)
    usual_permissions(Path(path))


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with copies instead of tensors that share memory (``same_as``), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def read_header(path: Path) -> dict[str, Any] | None:
    """``{"recipe": ..., "kind": the checkpoint format it came from}`` of a file by :func:`save`; None for others."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("maemm")
    except (SafetensorError, OSError):
        return None
    return json.loads(header) if header else None


def load_own(path: Path, settings: dict[str, Any]) -> Model:
    """The model of a file by :func:`save`. Raises :class:`MaemmError` for ``settings``, which the recipe records."""
    if settings:
        raise MaemmError(f"{', '.join(sorted(settings))} is already in the recipe of {path}; leave it out")
    header = read_header(path)
    if header is None:
        raise MaemmError(f"{path} holds no recipe; it was not saved by maemm")
    model = build_model(header["recipe"])
    state = load_file(path)
    extras = {key.removeprefix("extras/"): state.pop(key) for key in list(state) if key.startswith("extras/")}
    fill(model, state, str(path))
    model.extras, model.kind = extras, header.get("kind")
    return model.eval()
