"""Beginning with the weights of another model: a pre-trained encoder in a recipe of its own."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from maemm.model.model import Model
from maemm.weights import fill, load

NEW = ("head.*", "objectives.*", "targets.*")  # what the new model has for itself
UNUSED = (*NEW, "decoder.*", "modalities.*.decoder.*")  # what of the old one may be left over


def begin_with(model: Model, what: str | Path | Model) -> None:
    """Fill ``model`` from a run, a weights file or a model; only its head begins afresh, and class tokens where the
    old model has none (Point-MAE).

    Position tables are made from those of the old model for the new one's size, computed ones too (MAE trains a copy
    of its sin-cos table). Raises :class:`MaemmError` that names all other weights that are missing, left over or of
    another shape.
    """
    old = what if isinstance(what, Model) else load(Path(what))
    given, own = old.state_dict(), model.state_dict()
    unused = [*UNUSED, *([] if any(key.startswith("encoder.norm.") for key in own) else ["encoder.norm.*"])]
    unused += [f"modalities.{name}.*" for name in old.modalities if name not in model.modalities]
    taken = {key: value for key, value in given.items() if key in own or not _fits(key, unused)}
    afresh = list(NEW)
    if "encoder.prefix" not in given:  # a class token that is learned now
        afresh.append("encoder.prefix*")
    for key in own:
        if _fits(key, afresh) or (key not in given and key.startswith("decoder.") and model.decoder is not None):
            taken[key] = own[key]
        elif (made := _positions(key, model, old)) is not None:
            taken[key] = made
    fill(model, taken, f"the weights of init ({what if not isinstance(what, Model) else 'a model'})")


def _fits(key: str, patterns: list[str] | tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _positions(key: str, model: Model, old: Model) -> Tensor | None:
    """The value of a stored position where the old model has none, or one of another size."""
    owner, _, leaf = key.rpartition(".")
    given = old.state_dict().get(key)
    if given is not None and given.shape == model.state_dict()[key].shape:
        return None
    if leaf == "prefix_position":  # computed tables give class tokens no position
        return torch.zeros_like(model.state_dict()[key]) if given is None else None
    here, there = _module(model, owner), _module(old, owner)
    if not (hasattr(here, "grid") and hasattr(here, "table") and hasattr(there, "table")):
        return None
    return there.table(here.grid).detach().reshape(model.state_dict()[key].shape).clone()


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
