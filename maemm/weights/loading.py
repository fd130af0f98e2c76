"""A model from weights, published or our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from maemm.config import options
from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.weights.foreign import config_of, kind_of, read_state, strip_wrappers
from maemm.weights.own import MODEL, fill, find_checkpoint, load_own, recipe_of


def load(what: str | Path | dict[str, Tensor], kind: str | None = None, **known: Any) -> Model:
    """A model from weights: a file, a run or checkpoint folder, or a state dict; published or our own.

    Which weights of a run, see :func:`find_checkpoint`. A folder may also be another library's: config.json and
    model.safetensors.

    ``kind`` names the published layout where it cannot be told. ``known`` is what the weights do not record:
    ``heads``, ``decoder_heads``, ``norm_pix``, ``mask_ratio``... Every key and shape is checked: a partial match
    is a :class:`MaemmError` that names the keys. Files are never unpickled freely.
    """
    config = None
    if not isinstance(what, dict):
        path = Path(what)
        config = config_of(path)
        if config is not None:
            path = path / MODEL
        elif path.is_dir():
            return load_own(find_checkpoint(path), known)
        elif recipe_of(path) is not None:
            return load_own(path, known)
        what = read_state(path)
    state = strip_wrappers(what)
    found = kind_of(kind, state)
    told = {} if config is None else found.settings_of(config)
    known = options.check(found.read, {**told, **known}, found.name)
    recipe, ours, extras = found.read(state, **known)
    model = build_model(recipe)
    fill(model, ours, f"weights {found.name!r}")
    model.extras, model.kind = extras, found.name
    return model.eval()


def rebuilt(model: Model, overrides: Mapping[str, Any] | Iterable[str]) -> Model:
    """The model with other options of its modalities (``modalities.NAME.KEY``) and the same weights.

    For what a checkpoint does not tell or was trained without, such as views. Checked as a recipe is; raises
    :class:`MaemmError` also for options that ask for other weights.
    """
    from maemm import config
    from maemm.config.layers import flatten, from_overrides

    given = flatten(from_overrides(overrides).values)
    for key in given:
        above, name, *_ = *key.split("."), ""
        if above != "modalities" or name not in model.modalities:
            known = ", ".join(f"modalities.{one}.KEY" for one in model.modalities)
            raise MaemmError(f"{key!r} is no option of this model's modalities; only those can be set here: {known}")
    parts = {key: model.recipe[key] for key in ("modalities", "encoder")}
    found = build_model({**model.recipe, "modalities": config.load(parts, overrides)["modalities"]})
    fill(found, model.state_dict(), f"the weights, with other {', '.join(given)},")
    found.extras, found.kind = model.extras, model.kind
    return found.to(next(model.parameters()).device).eval()
