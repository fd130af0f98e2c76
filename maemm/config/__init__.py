"""Recipes: a YAML file with at most one base, and dotted overrides. All mistakes are reported at once.

:func:`load` returns the plain dictionary that :func:`maemm.build` and the training loop expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.config import reader
from maemm.config.check import checked
from maemm.config.layers import Layer, flatten, from_file, from_overrides
from maemm.config.messages import value_text
from maemm.config.names import RECIPE, locate, packaged, shown, studies, summary
from maemm.config.paths import expanded
from maemm.config.schema import DataConfig, TrainConfig
from maemm.config.stages import rows as stage_rows
from maemm.config.stages import stage_layers
from maemm.config.values import plain
from maemm.contract.errors import MaemmError, advice

__all__ = [
    "RECIPE",
    "DataConfig",
    "Resolved",
    "TrainConfig",
    "diff",
    "dump",
    "load",
    "locate",
    "packaged",
    "resolve",
    "shown",
    "stage_rows",
    "stages_of",
    "studies",
    "summary",
]

RecipeLike = str | Path | Mapping[str, Any]  # a packaged name, a YAML file, a run folder, or a dictionary
Overrides = Mapping[str, Any] | Iterable[str] | None


@dataclass(frozen=True)
class Resolved:
    """A recipe with its layers merged, checked, and with the defaults of ``data`` and ``train`` filled in."""

    name: str | None  # for messages; None: a dictionary
    values: dict[str, Any]
    layer: Layer
    stages: dict[str, Resolved] = field(default_factory=dict)  # each as a recipe of its own

    def origin(self, key: str) -> str:
        """Where a dotted key was set ("FILE, line N" or "override"); "default" if nowhere."""
        return self.layer.origins.get(key, "default")


def load(recipe: RecipeLike, overrides: Overrides = None, *, training: bool = False) -> dict[str, Any]:
    """A packaged recipe's name, a YAML file, a run folder or a dictionary -> the resolved recipe as a dictionary.

    ``overrides``: ``["train.epochs=10"]`` or ``{"train.epochs": 10}``. ``training=True`` also requires the keys that
    only training needs. ``stage``, as an override, chooses one stage of a recipe that has ``stages``. Raises
    :class:`MaemmError` with one line for each mistake.
    """
    return resolve(recipe, overrides, training=training).values


def resolve(recipe: RecipeLike, overrides: Overrides = None, *, training: bool = False) -> Resolved:
    """Like :func:`load`, with the origin of each key."""
    name, layer = _read(recipe)
    layer = from_overrides(overrides).over(layer)
    if "_base_" in layer.values:
        origin = layer.origin("_base_") or "a dict"
        raise MaemmError(f"_base_ is only allowed in a file ({origin}); put it into a YAML file")
    chosen = layer.values.pop("stage", None)
    values = checked(layer, name, training)
    stages = _stages(values, layer.origins, name, training)
    if chosen is None:
        return Resolved(name, values, layer, stages)
    if chosen not in stages:
        known = advice(str(chosen), stages) if stages else "leave stage out"
        raise MaemmError(f"the recipe has no stage {value_text(chosen)} (stage); {known}")
    return stages[chosen]


def stages_of(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{stage: its recipe} of a resolved recipe, in order; {} where it has none.

    Each is a resolved recipe of its own: ``out`` is a folder in that of the whole, ``init`` the stage before, unless
    the stage says otherwise. Raises :class:`MaemmError` with one line for each mistake.
    """
    if not recipe.get("stages"):
        return {}
    stages = _stages(recipe, {}, recipe.get("name"), True)
    return {name: stage.values for name, stage in stages.items()}


def _stages(
    values: Mapping[str, Any], origins: Mapping[str, str], name: str | None, training: bool
) -> dict[str, Resolved]:
    if not values.get("stages"):
        return {}
    resolved: dict[str, Resolved] = {}
    mistakes: list[str] = []
    for stage, layer in stage_layers(values, origins).items():
        title = f"stage {stage} of {name or 'the recipe'}"
        try:
            resolved[stage] = Resolved(title, checked(layer, title, training), layer)
        except MaemmError as error:
            mistakes += [f"stage {stage}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise MaemmError("\n".join(mistakes))
    return resolved


def _read(recipe: RecipeLike) -> tuple[str | None, Layer]:
    """(name for messages, layer with its base merged) of a recipe."""
    if isinstance(recipe, Mapping):
        return None, Layer(plain(recipe, ""))
    if not isinstance(recipe, (str, Path)):
        raise MaemmError(f"a recipe is a name, a path or a dict, not {type(recipe).__name__}")
    name, path = locate(recipe)
    layer = _with_base(from_file(*reader.read(path, name), name), path, name)
    if path.name == RECIPE and expanded(recipe).is_dir():
        layer.set("out", str(recipe), name)  # the run may have been moved
    return name, layer


def _with_base(layer: Layer, path: Path, name: str) -> Layer:
    if "_base_" not in layer.values:
        return layer
    base, origin = layer.values.pop("_base_"), layer.origins.pop("_base_")
    if not isinstance(base, str) or not base:
        raise MaemmError(f"_base_ must be the name of a recipe, got {value_text(base)} ({origin})")
    sibling = path.parent / base
    try:
        base_name, base_path = locate(sibling if sibling.is_file() else base)
    except MaemmError as error:
        raise MaemmError(f"_base_ ({origin}): {error}") from None
    base_layer = from_file(*reader.read(base_path, base_name), base_name)
    if "_base_" in base_layer.values:
        raise MaemmError(f"{base_name}, the _base_ of {name}, has a _base_ of its own ({origin}); only one is allowed")
    return layer.over(base_layer)


def dump(values: Mapping[str, Any]) -> str:
    """A recipe as YAML text that :func:`load` reads back to the same."""
    return reader.dump(plain(values, ""))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line ``key: old -> new`` for every key that differs between two resolved recipes."""
    before, after = flatten(plain(old, "")), flatten(plain(new, ""))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {value_text(before.get(key))} -> {value_text(after.get(key))}" for key in keys]
