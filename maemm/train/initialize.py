"""Initialise a model from the weights of another: a pre-trained encoder in a new recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maemm.model.model import Model
from maemm.weights import fill, load, load_encoder

NEW = ("head.*", "objectives.*", "targets.*")  # keys of the new model that keep their own initialisation
UNUSED = (*NEW, "decoder.*", "modalities.*.decoder.*")  # keys of the old model that the new one need not have


def initialize_from(model: Model, weights: str | Path | Model | Mapping[str, Any]) -> None:
    """Fill ``model`` from a run folder, a weights file or a model, or from ``{weights: FILE, **settings}`` with what
    the file does not record (see :func:`maemm.load`).

    Settings of a decoder are not asked for where ``model`` has none.

    Its head and objectives keep their own initialisation, as do class tokens where the old model has none (Point-MAE).
    Position tables are computed for the new model's size from those of the old one, sin-cos tables too (MAE trains a
    copy of its table). Raises :class:`MaemmError` that names all other weights that are missing, unexpected or of
    another shape.
    """
    old = weights if isinstance(weights, Model) else _load(weights, with_decoder=model.decoder is not None)
    old_state, state = old.state_dict(), model.state_dict()
    unused = [*UNUSED, *(f"modalities.{name}.*" for name in old.modalities if name not in model.modalities)]
    if not any(key.startswith("encoder.norm.") for key in state):
        unused.append("encoder.norm.*")
    new = [*NEW, *([] if "encoder.prefix" in old_state else ["encoder.prefix*"])]
    result = {key: value for key, value in old_state.items() if key in state or not _matches(key, unused)}
    for key in state:
        new_decoder = key not in old_state and key.startswith("decoder.") and model.decoder is not None
        if _matches(key, new) or new_decoder:
            result[key] = state[key]
        elif (position := _position(key, model, old, state[key], old_state.get(key))) is not None:
            result[key] = position
    title = weights.get("weights") if isinstance(weights, Mapping) else weights
    fill(model, result, f"the weights of init ({'a model' if isinstance(weights, Model) else title})")
    for target in model.all_targets():
        target.reset(model)


def _load(weights: str | Path | Mapping[str, Any], with_decoder: bool) -> Model:
    settings = dict(weights) if isinstance(weights, Mapping) else {"weights": weights}
    return (load if with_decoder else load_encoder)(settings.pop("weights"), **settings)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _position(key: str, model: Model, old: Model, value: Tensor, old_value: Tensor | None) -> Tensor | None:
    """The value of a position table that the old model has not, or in another size; None for any other key."""
    owner, _, leaf = key.rpartition(".")
    if old_value is not None and old_value.shape == value.shape:
        return None
    if leaf == "prefix_position":  # computed tables give class tokens no position
        return torch.zeros_like(value) if old_value is None else None
    module, old_module = _submodule(model, owner), _submodule(old, owner)
    if not (hasattr(module, "grid") and hasattr(module, "table") and hasattr(old_module, "table")):
        return None
    return old_module.table(module.grid).detach().reshape(value.shape).clone()


def _submodule(model: nn.Module, name: str) -> Any:
    """The submodule of that name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
