"""Build a model from weights, published or our own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maemm import config
from maemm.config import options
from maemm.config.layers import flatten, from_overrides
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.weights.checkpoints import check_file, find_checkpoint
from maemm.weights.foreign import detect_format, read_library_config, read_state, strip_wrappers
from maemm.weights.own import MODEL, fill, load_own, read_header


def load(weights: str | Path | dict[str, Tensor], kind: str | None = None, **settings: Any) -> Model:
    """A model from weights, published or our own, in eval mode on the CPU.

    ``weights``: a file, a run or checkpoint folder (see :func:`find_checkpoint` for which of its files), a folder of
    another library (config.json and model.safetensors), or a state dict. ``kind`` names the checkpoint format where it
    cannot be detected. ``settings`` are what published weights do not record: ``heads``, ``decoder_heads``,
    ``norm_pix``, ``mask_ratio``...

    Raises :class:`MaemmError` unless every key and shape matches; it names those that do not. Pickles are read with
    ``weights_only``.
    """
    library_config = None
    if not isinstance(weights, (str, os.PathLike, dict)):
        todo = "give its state_dict()" if isinstance(weights, nn.Module) else "give a path or a state dict"
        raise MaemmError(f"weights are of type {type(weights).__name__}; {todo}")
    if isinstance(weights, dict):
        state = strip_wrappers(weights)
    else:
        path = expanded(weights)
        library_config = read_library_config(path)
        if library_config is not None:
            path = path / MODEL
        elif path.is_dir():
            return load_own(find_checkpoint(path), settings)
        check_file(path)
        if read_header(path) is not None:
            return load_own(path, settings)
        state = strip_wrappers(read_state(path))
    checkpoint_format = detect_format(kind, state)
    if library_config is not None:
        settings = {**checkpoint_format.settings_of(library_config), **settings}
    settings = options.check(checkpoint_format.read, settings, checkpoint_format.name)
    recipe, model_state, extras = checkpoint_format.read(state, **settings)
    model = build_model(recipe)
    fill(model, model_state, f"weights {checkpoint_format.name!r}")
    model.extras, model.kind = extras, checkpoint_format.name
    return model.eval()


def rebuilt(model: Model, overrides: Mapping[str, Any] | Iterable[str]) -> Model:
    """The model with other options of its modalities (``modalities.NAME.KEY``) and the same weights, in eval mode.

    For what a checkpoint does not record or was trained without, such as test-time views. Raises :class:`MaemmError`
    for other keys, for values that a recipe may not have, and for options that change the shapes of weights.
    """
    changes = flatten(from_overrides(overrides).values)
    for key in changes:
        section, name, *_ = *key.split("."), ""
        if section != "modalities" or name not in model.modalities:
            keys = ", ".join(f"modalities.{name}.KEY" for name in model.modalities)
            raise MaemmError(f"{key!r} is no option of this model's modalities; only those can be set here: {keys}")
    parts = {key: model.recipe[key] for key in ("modalities", "encoder")}
    new = build_model({**model.recipe, "modalities": config.load(parts, overrides)["modalities"]})
    fill(new, model.state_dict(), f"the weights, with other {', '.join(changes)},")
    new.extras, new.kind = model.extras, model.kind
    return new.to(next(model.parameters()).device).eval()
