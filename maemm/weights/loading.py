"""Build a model from weights, published or our own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from maemm import config
from maemm.config.layers import flatten, from_overrides
from maemm.config.paths import expanded
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.weights.building import fill, model_from
from maemm.weights.checkpoints import check_file, find_checkpoint
from maemm.weights.files import check_path, read_file
from maemm.weights.foreign import detect_format, read_with
from maemm.weights.layout import MissingSettingError
from maemm.weights.library_folder import config_beside, read_library_weights, weights_of
from maemm.weights.own import HEADER, own_model
from maemm.weights.wrappers import weights_in


def load(
    weights: str | os.PathLike | dict[str, Tensor],
    kind: str | None = None,
    *,
    checkpoint_key: str | None = None,
    **settings: Any,
) -> Model:
    """A model from weights, published or our own, in eval mode on the CPU.

    ``weights``: a file, a run or checkpoint folder (see :func:`find_checkpoint` for which of its files), a folder of
    another library (config.json, and weights in one file or several), or a state dict. What a file is follows from its
    content. ``kind`` names the checkpoint format where it cannot be detected, ``checkpoint_key`` the entry of a file
    that holds several sets of weights (teacher, student). ``settings`` are what published weights do not record:
    ``heads``, ``decoder_heads``, ``norm_pix``, ``mask_ratio``...

    Raises :class:`MaemmError` unless every key, shape and type matches; it names those that do not. Pickles are read
    with ``weights_only``.
    """
    if isinstance(weights, dict):
        return _foreign_model(weights_in(weights, "the dict", checkpoint_key), "the dict", kind, settings, None)
    check_path(weights)
    path = expanded(weights)
    is_folder = path.is_dir()
    folder = path
    if is_folder:
        path = weights_of(path) or find_checkpoint(path)
    else:
        check_file(path)
    library_config = config_beside(path)
    if path.suffix == ".json":
        content = read_library_weights(path)
    else:
        try:
            file = read_file(path)
        except MaemmError:
            if is_folder and not path.exists():  # the run that writes here has removed it since: there is a newer one
                return load(folder, kind, checkpoint_key=checkpoint_key, **settings)
            raise
        if HEADER in file.metadata:
            if checkpoint_key is not None:
                settings = {**settings, "checkpoint_key": checkpoint_key}
            return own_model(file, path, kind, settings)
        content = file.value
    state = weights_in(content, str(path), checkpoint_key)
    return _foreign_model(state, str(path), kind, settings, library_config, is_folder)


def _foreign_model(
    state: dict[str, Tensor],
    where: str,
    kind: str | None,
    settings: dict[str, Any],
    library_config: Mapping[str, Any] | None,
    is_folder: bool = False,
) -> Model:
    """The model of published weights. ``library_config``: the config.json beside them, which must be understood where
    the whole folder was named (``is_folder``)."""
    checkpoint_format, state = detect_format(kind, state, where)
    if library_config is not None:
        settings = {**_settings_of(checkpoint_format, library_config, where, is_folder), **settings}
    recipe, model_state, extras = read_with(checkpoint_format, state, settings, where)
    model = model_from(recipe, model_state, f"weights {checkpoint_format.name!r}")
    model.extras, model.kind = extras, checkpoint_format.name
    return model


def _settings_of(
    checkpoint_format: CheckpointFormat, library_config: Mapping[str, Any], where: str, is_folder: bool
) -> dict[str, Any]:
    """The settings in a config.json. Raises :class:`MaemmError` for one that says what cannot be followed."""
    if type(checkpoint_format).settings_of is CheckpointFormat.settings_of:
        if not is_folder:
            return {}
        raise MaemmError(
            f"weights of kind {checkpoint_format.name!r} are read without the config.json beside them; give the file "
            f"itself ({where}), and what it does not record: heads=..."
        )
    try:
        return checkpoint_format.settings_of(library_config)
    except MaemmError as error:
        problem, _, todo = str(error).partition("; ")
        raise MaemmError(f"{problem} (config.json beside {where}); {todo}") from None


def load_encoder(weights: str | os.PathLike | dict[str, Tensor], **settings: Any) -> Model:
    """:func:`load` for a use without a decoder: what only a decoder needs is not asked for.

    Where ``decoder_heads`` would be needed, the model comes without its decoder.
    """
    try:
        return load(weights, **settings)
    except MissingSettingError as missing:
        if missing.name != "decoder_heads":
            raise
    model = load(weights, **{**settings, "decoder_heads": 1})
    model.decoder, model.recipe = None, {**model.recipe, "decoder": None}
    return model


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
