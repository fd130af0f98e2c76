"""The recipe that ``maemm finetune`` trains, made from a pre-trained run or weights, or read from a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from maemm import config, registry
from maemm.config import RECIPE, reader
from maemm.config.check import KEYS
from maemm.config.options import options_of
from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.open import open_fold, open_source, with_class_names
from maemm.data.shots import Shots, labels_of
from maemm.model.model import Model
from maemm.tasks._shared.data_objects import path_of
from maemm.tasks._shared.inputs import NO_LABELS, data_config, open_data, some_labels
from maemm.weights import load_encoder, setting_names
from maemm.weights.checkpoints import run_of

#: MAE, appendix A.1 and its published script for ViT-B, with the layer decay of its larger models. Mixing samples is
#: left to the recipe, as not all signals can be mixed.
TRAIN = {
    "epochs": 50,
    "base_lr": 5e-4,
    "warmup_epochs": 5,
    "min_lr": 1e-6,
    "layer_decay": 0.75,
    "optimizer": {"type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05},
    "no_decay": ["*.bias", "encoder.prefix*", "*.positions.*"],
}
SMOOTHING, DROP_PATH, VALIDATION, LARGEST_BATCH = 0.1, 0.1, 0.1, 256
_PRETRAINING_KEYS = ("masking", "target", "decoder_position")  # of a modality; fine-tuning has no use for them


def recipe_for(
    weights: str | os.PathLike,
    data: str | os.PathLike | None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    balanced: bool = False,
) -> dict[str, Any]:
    """The resolved recipe of a fine-tuning.

    ``weights``: a run or weights, for which a recipe is made (see :data:`TRAIN`) that begins with them and has a new
    head; or a recipe. A fine-tuned run whose ``out`` and data are not changed goes on with its own recipe. ``data`` is
    short for ``data.root``. ``balanced``: weigh classes by the inverse of their frequency. Raises :class:`MaemmError`.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise MaemmError(
            f"weights are of type {type(weights).__name__}; give a run or a file, as the recipe of the new run names it"
        )
    changes = parse_overrides(overrides)
    if data is not None:
        changes = {"data.root": path_of(data, "fine-tuning"), **changes}
    recipe = _recipe_for(weights, changes)
    return with_class_weights(recipe) if balanced else recipe


def scratch_or_tuned_recipe(
    weights: str | os.PathLike,
    data: str | os.PathLike | None,
    overrides: Mapping[str, Any],
    *,
    scratch: bool = False,
    balanced: bool = False,
) -> dict[str, Any]:
    """:func:`recipe_for`; with ``scratch`` it starts from fresh weights and has a folder of its own.

    Raises :class:`MaemmError` where it starts from no weights although ``scratch`` is not set.
    """
    recipe = recipe_for(weights, data, overrides, balanced=balanced)
    if scratch:
        recipe.pop("init", None)
        recipe["out"] += "-scratch"
    elif not recipe.get("init") and not (expanded(weights) / RECIPE).is_file():
        raise MaemmError(
            f"{weights} starts from no weights, as its recipe has no init; set init=RUN_OR_WEIGHTS, or add --scratch"
        )
    return recipe


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """``["train.epochs=3"]`` -> {"train.epochs": 3}; a copy of a mapping."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    return {key: reader.value(text, key) for key, _, text in (word.partition("=") for word in overrides)}


def is_supervised(recipe: Mapping[str, Any]) -> bool:
    """Whether all objectives of a recipe learn from labels."""
    specs = recipe.get("objectives") or {}
    objectives = [registry.find("objectives", (spec or {}).get("type", name)) for name, spec in specs.items()]
    return bool(objectives) and not any(objective.masked for objective in objectives)


def _recipe_for(weights: str | os.PathLike, overrides: dict[str, Any]) -> dict[str, Any]:
    path = run_of(expanded(weights))
    if (path / RECIPE).is_file():
        stored = config.load(path)
        is_new = not (is_supervised(stored) and _continues(path, stored, overrides))
        if is_new and is_supervised(stored) and len(stored["modalities"]) > 1:
            return _with_new_head(path, stored, overrides)
    else:
        is_new = path.exists() and path.suffix not in (".yaml", ".yml")
    if is_new:
        settings, overrides = _split_settings(overrides)
        return _recipe_from(path, load_encoder(path, **settings), overrides, settings)
    recipe = config.load(str(path if (path / RECIPE).is_file() else weights), overrides, training=True)
    if not is_supervised(recipe):
        raise MaemmError(
            f"{weights} is a recipe of pre-training; give a run or weights to fine-tune, or a recipe with objectives: "
            "{classify: {}}, a head and init"
        )
    recipe = with_class_names(recipe)
    return recipe if "train.batch" in overrides else _with_small_batch(recipe)


def _continues(run: Path, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Whether a fine-tuned run is to go on in its folder. It begins another one with another ``out``, or other data."""
    if overrides.get("out") is not None:
        return expanded(overrides["out"]).resolve() == run.resolve()
    root, own = overrides.get("data.root"), recipe["data"].get("root")
    return root is None or (own is not None and expanded(root).resolve() == Path(own).resolve())


def weights_settings() -> set[str]:
    """The names of what is told beside weights that do not record it."""
    return setting_names() | {"kind", "checkpoint_key"}


def _split_settings(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the weights do not record, the other overrides): ``heads=4`` and ``init.heads=4``."""
    names, settings = weights_settings(), {}
    for key in overrides:
        name = key.removeprefix("init.")
        if name in names and (key.startswith("init.") or key not in KEYS):
            settings[name] = overrides[key]
    return settings, {key: v for key, v in overrides.items() if key.removeprefix("init.") not in settings}


# ------------------------------------------------------------------------------------------------ a recipe changed
def _with_new_head(run: Path, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a fine-tuned run of several modalities, with a new head, to begin from what the run has learned."""
    objectives = {
        name: {key: value for key, value in (spec or {}).items() if key != "class_weights"}
        for name, spec in stored["objectives"].items()
    }
    base = {**stored, "objectives": objectives, "init": str(run), "out": _default_out(run)}
    base["data"] = {**stored["data"], "classes": None}
    del base["name"]
    recipe = config.load(base, overrides, training=True)
    classes = recipe["data"]["classes"] or classes_of(open_source(recipe))
    recipe["data"]["classes"] = classes
    if "head.classes" not in overrides:
        recipe["head"]["classes"] = classes if isinstance(classes, int) else len(classes)
    return recipe


def _with_small_batch(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose batch is no larger than the few labels (``data.shots``) that it learns from."""
    shots = recipe["data"].get("shots")
    if shots is None:
        return recipe
    source = open_fold(recipe)[0]
    samples = len(Shots.parse(str(shots)).choose(labels_of(source), 0, source.classes))
    if recipe["train"]["batch"] <= samples * recipe["data"]["aug_repeats"]:
        return recipe
    return {**recipe, "train": {**recipe["train"], "batch": batch_for(samples)}}


def with_class_weights(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with ``class_weights`` from the labels of its data.

    A weight is samples / (classes that occur * samples of the class), as scikit-learn's "balanced"; 0 for classes that
    do not occur. Raises :class:`MaemmError` for data without labels.
    """
    labels = labels_of(open_fold(recipe)[0])
    counts = np.maximum(labels, 0).sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels[labels >= 0])
    if not counts.any():
        raise MaemmError("the data have no labels to weigh (--balanced); give data with labels")
    weights = np.where(counts > 0, counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1)), 0)
    weights = np.pad(weights, (0, max(0, recipe["head"]["classes"] - len(weights))))
    name = next(iter(recipe["objectives"]))
    spec = {**(recipe["objectives"][name] or {}), "class_weights": [round(float(weight), 6) for weight in weights]}
    return {**recipe, "objectives": {**recipe["objectives"], name: spec}}


# ------------------------------------------------------------------------------------------------ a recipe made
def _recipe_from(
    path: Path, model: Model, overrides: dict[str, Any], settings: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The recipe that fine-tunes a pre-trained model. ``settings``: what its weights do not record."""
    names = list(model.recipe["modalities"])
    if len(names) > 1:
        raise MaemmError(
            f"{path} has several modalities ({', '.join(names)}), and a linear head reads one of them; give a recipe "
            f"with a head for all of them and init={path} (maemm config ls shows recipes named */finetune/*)"
        )
    options = {
        key.removeprefix("data."): value for key, value in overrides.items() if key in ("data.list", "data.source")
    }
    root = overrides.get("data.root")
    source = open_data(model.recipe, root, **options)
    classes = overrides.get("data.classes") or classes_of(source)
    data = data_config(model.recipe, root, **options) | {"classes": classes, "validation": VALIDATION}
    fold = {key: overrides.get(f"data.{key}") for key in ("fold", "groups")}
    source, _ = open_fold({"data": fold, "train": {"seed": overrides.get("train.seed", 0)}}, source)
    shots = overrides.get("data.shots")
    if shots is not None:  # no labels beyond these few, also not to choose the best step with
        data["validation"] = None
        samples = len(Shots.parse(str(shots)).choose(labels_of(source), 0, source.classes))
    else:
        fraction = overrides.get("data.validation", VALIDATION)
        samples = int(len(source) * (1 - fraction)) if isinstance(fraction, float) else len(source)
    encoder = model.recipe["encoder"]
    # Drop path, and no final norm, as the head has its own (MAE, appendix A.1); where the encoder has these options.
    accepted = options_of(registry.find("encoders", encoder["type"]))
    changes = {"drop_path": DROP_PATH, "final_norm": False}
    base = {
        "modalities": {
            name: {key: value for key, value in spec.items() if key not in _PRETRAINING_KEYS}
            for name, spec in model.recipe["modalities"].items()
        },
        "encoder": {**encoder, **{key: value for key, value in changes.items() if key in accepted}},
        "decoder": None,
        "objectives": {"classify": {"smoothing": SMOOTHING} | ({"loss": "sigmoid"} if source.multilabel else {})},
        "head": {"type": "linear", "classes": classes if isinstance(classes, int) else len(classes)},
        "init": {"weights": str(path), **settings} if settings else str(path),
        "data": data,
        "train": {**TRAIN, "batch": batch_for(samples)},
        "out": _default_out(path),
    }
    recipe = config.load(base, overrides, training=True)
    recipe.pop("name", None)
    return recipe


def _default_out(weights: Path) -> str:
    return str(weights.parent / f"{weights.stem if weights.is_file() else weights.name}-finetune")


def classes_of(source: Source) -> list[str]:
    """Names of the classes; raises :class:`MaemmError` where there are none."""
    if source.classes is not None:
        return list(source.classes)
    labels = some_labels(source)
    if not labels:
        raise MaemmError(NO_LABELS)
    raise MaemmError(
        f"the labels are numbers without names (such as {max(labels)}); say how many there are: data.classes=N"
    )


def batch_for(samples: int) -> int:
    """A power of 2 that makes four steps of an epoch or more, where there are enough samples."""
    return int(min(LARGEST_BATCH, 2 ** max(1, int(np.log2(max(samples, 8) / 4)))))
