"""``maemm finetune``: the recipe of a fine-tuning from what was pre-trained. The loop is that of pre-training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maemm import config, registry
from maemm.config import RECIPE, reader
from maemm.config.options import options_of
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.open import open_fold, open_source
from maemm.data.shots import Shots, labels_of
from maemm.model.model import Model
from maemm.tasks._shared.inputs import data_config, open_data
from maemm.weights import load

#: MAE, appendix A.1 and its published script for ViT-B, with the layer decay of its larger models; the mixing of
#: samples is left to the recipe, as not all signals can be mixed
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
_PRETRAINING = ("masking", "target", "decoder_position")  # keys of a modality that fine-tuning has no use for
_PROBED = 64


def recipe_for(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    balanced: bool = False,
) -> dict[str, Any]:
    """The resolved recipe that ``maemm finetune`` trains.

    ``what``: a recipe or a fine-tuned run, which are taken as they are, or a pre-trained run or weights, for which
    one is made: see :data:`TRAIN`. ``data`` stands for ``data.root``. ``balanced``: classes weigh by the inverse of
    their frequency. Raises :class:`MaemmError`.
    """
    recipe = _recipe_for(what, data, pairs(overrides))
    return with_class_weights(recipe) if balanced else recipe


def _recipe_for(what: str | os.PathLike, data: str | os.PathLike | None, given: dict[str, Any]) -> dict[str, Any]:
    if data is not None:
        given = {"data.root": os.fspath(data), **given}
    path = Path(what)
    stored = path / RECIPE
    known = reader.read(stored, str(stored))[0] if stored.is_file() else None
    if known is not None and not supervised(known):
        return _made(path, load(path), given)
    if known is None and path.exists() and path.suffix not in (".yaml", ".yml"):
        return _made(path, load(path), given)
    recipe = config.load(str(what), given, training=True)
    if not supervised(recipe):
        raise MaemmError(
            f"{what} is a recipe of pre-training; give a run or weights to fine-tune, or a recipe with objectives: "
            "{classify: {}}, a head and init"
        )
    recipe = _with_classes(recipe)
    return recipe if "train.batch" in given else _with_batch(recipe)


def _with_batch(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose batch is no larger than the few labels that it learns from."""
    shots = recipe["data"].get("shots")
    if shots is None:
        return recipe
    source = open_fold(recipe)[0]
    left = len(Shots.parse(str(shots)).choose(labels_of(source), 0, source.classes))
    if recipe["train"]["batch"] <= left * recipe["data"]["aug_repeats"]:
        return recipe
    return {**recipe, "train": {**recipe["train"], "batch": batch_for(left)}}


def _with_classes(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the names of its data's classes, so that its model knows what its answers mean.

    Raises :class:`MaemmError` where the head has another number of outputs.
    """
    if recipe["data"].get("classes") is not None or not recipe.get("head"):
        return recipe
    known, count = open_source(recipe).classes, recipe["head"]["classes"]
    if known is None:
        return recipe
    if len(known) != count:
        raise MaemmError(f"the data have {len(known)} classes, the head {count} outputs; set head.classes={len(known)}")
    return {**recipe, "data": {**recipe["data"], "classes": list(known)}}


def supervised(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe learns from labels alone."""
    specs = recipe.get("objectives") or {}
    found = [registry.find("objectives", (spec or {}).get("type", name)) for name, spec in specs.items()]
    return bool(found) and not any(one.masked for one in found)


def _made(path: Path, model: Model, given: dict[str, Any]) -> dict[str, Any]:
    names = list(model.recipe["modalities"])
    if len(names) > 1:
        raise MaemmError(
            f"{path} has several modalities ({', '.join(names)}), and a linear head reads one of them; give a recipe "
            f"with a head for all of them and init={path} (maemm config ls shows recipes named */finetune/*)"
        )
    own = {key.removeprefix("data."): one for key, one in given.items() if key in ("data.list", "data.source")}
    root = given.get("data.root")
    source = open_data(model.recipe, root, **own)
    classes = given.get("data.classes") or classes_of(source)
    count = classes if isinstance(classes, int) else len(classes)
    values = data_config(model.recipe, root, **own) | {"classes": classes, "validation": VALIDATION}
    fold = {key: given.get(f"data.{key}") for key in ("fold", "groups")}
    source, _ = open_fold({"data": fold, "train": {"seed": given.get("train.seed", 0)}}, source)
    shots = given.get("data.shots")
    if shots is not None:  # few labels are few labels: none besides to stop by
        values["validation"] = None
        left = len(Shots.parse(str(shots)).choose(labels_of(source), 0, source.classes))
    else:
        fraction = given.get("data.validation", VALIDATION)
        left = len(source) * (1 - fraction) if isinstance(fraction, float) else len(source)
    objective = {"smoothing": SMOOTHING} | ({"loss": "sigmoid"} if source.multilabel else {})
    made = {
        "modalities": {name: _plain_modality(spec) for name, spec in model.recipe["modalities"].items()},
        "encoder": _encoder(model.recipe["encoder"]),
        "decoder": None,
        "objectives": {"classify": objective},
        "head": {"type": "linear", "classes": count},
        "init": str(path),
        "data": values,
        "train": {**TRAIN, "batch": batch_for(int(left))},
        "out": str(path.parent / f"{path.stem if path.is_file() else path.name}-finetune"),
    }
    recipe = config.load(made, given, training=True)
    recipe.pop("name", None)
    return recipe


def with_class_weights(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with ``class_weights`` from the labels of its data: samples / (classes that occur * of the class)."""
    labels = labels_of(open_fold(recipe)[0])
    kept = np.maximum(labels, 0) if labels.ndim == 2 else labels[labels >= 0]
    counts = kept.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(kept)
    if not counts.any():
        raise MaemmError("the data have no labels to weigh (--balanced); give data with labels")
    weights = np.where(counts > 0, counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1)), 0)
    weights = np.pad(weights, (0, max(0, recipe["head"]["classes"] - len(weights))))
    name = next(iter(recipe["objectives"]))
    spec = {**(recipe["objectives"][name] or {}), "class_weights": [round(float(one), 6) for one in weights]}
    return {**recipe, "objectives": {**recipe["objectives"], name: spec}}


def classes_of(source: Source) -> list[str]:
    """Names of the labels; :class:`MaemmError` where they have none."""
    from maemm.tasks._shared.inputs import evenly_spaced

    if source.classes is not None:
        return list(source.classes)
    found = []
    for index in evenly_spaced(len(source), _PROBED):
        try:
            label = source.label(index)
        except MemoryError:
            raise
        except Exception:  # whatever a broken file does; the loader counts it
            continue
        found += label if isinstance(label, tuple) else [] if label is None or label < 0 else [label]
    if not found:
        raise MaemmError(
            "the data have no labels; give all files in a folder per class, or a list or array with labels"
        )
    raise MaemmError(
        f"the labels are numbers without names (such as {max(found)}); say how many there are: data.classes=N"
    )


def batch_for(samples: int) -> int:
    """A power of 2, so that an epoch has four steps at least where there are so many samples."""
    return int(min(LARGEST_BATCH, 2 ** max(1, int(np.log2(max(samples, 8) / 4)))))


def _plain_modality(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _PRETRAINING}


def _encoder(spec: Mapping[str, Any]) -> dict[str, Any]:
    """With drop path, and without the final norm: the head brings its own (MAE, appendix A.1)."""
    known = options_of(registry.find("encoders", spec["type"]))
    new = {"drop_path": DROP_PATH, "final_norm": False}
    return {**spec, **{key: value for key, value in new.items() if key in known}}


def pairs(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    return {key: reader.value(text, key) for key, _, text in (word.partition("=") for word in overrides)}


def finetune(
    what: str | os.PathLike,
    data: str | os.PathLike | None = None,
    *,
    scratch: bool = False,
    balanced: bool = False,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> Path:
    """``finetune("runs/photos", "labelled/", **{"train.epochs": 20})`` -> the run folder; called again it goes on.

    ``what`` and ``balanced``: see :func:`recipe_for`. ``scratch``: the same network and recipe with fresh weights, in
    a folder of its own, to be compared with. Raises :class:`MaemmError`.
    """
    from maemm.tasks.pretrain.run import train_recipe

    return train_recipe(beginning(what, data, overrides, scratch=scratch, balanced=balanced), echo=echo)


def beginning(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    overrides: Mapping[str, Any],
    *,
    scratch: bool = False,
    balanced: bool = False,
) -> dict[str, Any]:
    """The recipe that :func:`finetune` trains. Raises :class:`MaemmError` where it begins with no weights."""
    recipe = recipe_for(what, data, overrides, balanced=balanced)
    if not (scratch or recipe.get("init") or (Path(what) / RECIPE).is_file()):
        raise MaemmError(
            f"{what} begins with no weights, as its recipe has no init; set init=RUN_OR_WEIGHTS, or add --scratch"
        )
    if scratch:
        recipe.pop("init", None)
        recipe["out"] += "-scratch"
    return recipe
