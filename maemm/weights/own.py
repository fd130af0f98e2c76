"""Our own weights: one safetensors file with the recipe in its header, and which file of a run stands for it."""

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

MODEL, EMA = "model.safetensors", "ema.safetensors"  # of a checkpoint: the weights, and their average over training
BEST = "best"  # folder in the run: the weights with the best figure of validation


def fill(model: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load strictly; raises :class:`MaemmError` that names missing and unexpected keys and wrong shapes."""
    own = model.state_dict()
    problems = []
    for title, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if keys:
            problems.append(f"{len(keys)} {title} ({some_of(sorted(keys))})")
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape ({some_of(sorted(wrong))})")
    if problems:
        raise MaemmError(f"{what} do not fit: {'; '.join(problems)}")
    model.load_state_dict(state)


def some_of(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# --------------------------------------------------------------------------------------------- our own files
def save(model: Model, path: str | Path) -> None:
    """One safetensors file with the recipe in its header; :func:`load` reads it back exactly."""
    header = {"maemm": json.dumps({"recipe": model.recipe, "kind": model.kind})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    state |= {f"extras/{key}": value.contiguous() for key, value in model.extras.items()}
    save_file(unshared(state), path, metadata=header)
    usual_permissions(Path(path))


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory (``same_as`` modalities): safetensors refuses those."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The header of our own file, or None where the file is not ours."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("maemm")
    except (SafetensorError, OSError):
        return None
    return json.loads(header) if header else None


def load_own(path: Path, known: dict[str, Any]) -> Model:
    if known:
        raise MaemmError(f"{', '.join(sorted(known))} is already in the recipe of {path}; leave it out")
    header = recipe_of(path)
    if header is None:
        raise MaemmError(f"{path} holds no recipe; it is not a model saved by maemm")
    model = build_model(header["recipe"])
    state = load_file(path)
    extras = {key.removeprefix("extras/"): state.pop(key) for key in list(state) if key.startswith("extras/")}
    fill(model, state, str(path))
    model.extras, model.kind = extras, header.get("kind")
    return model.eval()


def find_checkpoint(folder: Path) -> Path:
    """The model file of a checkpoint folder; of a run folder the best of a classifier that validated, else the last.

    A checkpoint with an average of the weights (``train.ema``, ``train.average``) stands for that average.
    """
    best = folder / BEST / MODEL
    if not (folder / MODEL).is_file():
        if ((recipe_of(best) or {}).get("recipe") or {}).get("head"):
            return best
        steps = [path.parent for path in (folder / "checkpoints").glob(f"step-*/{MODEL}")]
        if not steps:
            raise MaemmError(f"{folder} holds no checkpoint; give a run folder, a checkpoint folder or a weights file")
        folder = max(steps, key=lambda path: (len(path.name), path.name))  # step-1000000 behind step-999999
    return folder / EMA if (folder / EMA).is_file() else folder / MODEL
