"""Recipes: one flat YAML file, at most one base, dotted overrides; all mistakes found at once.

``load`` gives the plain dictionary that :func:`maemm.build` and the training loop take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.config import reader
from maemm.config.check import checked
from maemm.config.layers import Layer, flatten, from_file, from_overrides
from maemm.config.messages import plain, value_text
from maemm.config.names import RECIPE, locate, packaged, shown, summary
from maemm.config.schema import DataConfig, TrainConfig
from maemm.contract.errors import MaemmError

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
    "summary",
]

Overrides = Mapping[str, Any] | Iterable[str] | None


@dataclass(frozen=True)
class Resolved:
    """A recipe with all layers laid over each other, checked, and the defaults of ``data`` and ``train`` filled in."""

    name: str | None  # as messages call it; None: a dictionary
    values: dict[str, Any]
    layer: Layer

    def origin(self, key: str) -> str:
        """Where a dotted key was written; "default" if nowhere."""
        return self.layer.origins.get(key, "default")


def load(
    what: str | Path | Mapping[str, Any], overrides: Overrides = None, *, training: bool = False
) -> dict[str, Any]:
    """A recipe's name, YAML file, run folder or dictionary -> the resolved recipe as a plain dictionary.

    ``overrides``: ``["train.epochs=10"]`` or ``{"train.epochs": 10}``. ``training=True`` also demands what only a
    training needs. Raises :class:`MaemmError` with one line for each mistake.
    """
    return resolve(what, overrides, training=training).values


def resolve(what: str | Path | Mapping[str, Any], overrides: Overrides = None, *, training: bool = False) -> Resolved:
    """Like :func:`load`, with the place where each key was written."""
    name, layer = _read(what)
    layer = from_overrides(overrides).over(layer)
    if "_base_" in layer.values:
        raise MaemmError(
            f"_base_ can only stand in a file ({layer.origin('_base_') or 'the given dict'}); put it into a YAML file"
        )
    return Resolved(name, checked(layer, name, training), layer)


def _read(what: str | Path | Mapping[str, Any]) -> tuple[str | None, Layer]:
    if isinstance(what, Mapping):
        return None, Layer(plain(what, "recipe"))
    if not isinstance(what, (str, Path)):
        raise MaemmError(f"a recipe is a name, a path or a dict, not {type(what).__name__}")
    name, path = locate(what)
    layer = _with_base(_file(path, name), path, name)
    if path.name == RECIPE and Path(what).expanduser().is_dir():
        layer.set("out", str(what), name)  # the run may have been moved
    return name, layer


def _file(path: Path, name: str) -> Layer:
    values, lines = reader.read(path, name)
    return from_file(values, lines, name)


def _with_base(layer: Layer, path: Path, name: str) -> Layer:
    if "_base_" not in layer.values:
        return layer
    base, origin = layer.values.pop("_base_"), layer.origins.pop("_base_")
    if not isinstance(base, str) or not base:
        raise MaemmError(f"_base_ must be the name of one recipe, got {value_text(base)} ({origin})")
    beside = path.parent / base
    try:
        base_name, base_path = locate(beside if beside.is_file() else base)
    except MaemmError as error:
        raise MaemmError(f"_base_ ({origin}): {error}") from None
    below = _file(base_path, base_name)
    if "_base_" in below.values:
        raise MaemmError(f"{base_name}, the _base_ of {name}, has a _base_ of its own ({origin}); only one is allowed")
    return layer.over(below)


def dump(values: Mapping[str, Any]) -> str:
    """A recipe as YAML, as :func:`load` reads it back."""
    return reader.dump(plain(values, "recipe"))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "key: old -> new" for every key of two resolved recipes that differs."""
    before, after = flatten(plain(old, "recipe")), flatten(plain(new, "recipe"))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {value_text(before.get(key))} -> {value_text(after.get(key))}" for key in keys]
