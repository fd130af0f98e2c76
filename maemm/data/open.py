"""Sources opened as a recipe says: whole, one of a mixture, parts for training and validation, folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.folds import Fold
from maemm.data.labels import Labelled
from maemm.data.mixture import Mixture, Part
from maemm.data.shots import Shots, labels_of
from maemm.data.subset import Subset
from maemm.registry.make import part_of


def open_source(recipe: Mapping[str, Any]) -> Source:
    """The source of ``data.source``, or the one that has the name of the only modality's type.

    Raises :class:`MaemmError` where several modalities leave it open which source gives them all.
    """
    data = recipe["data"]
    if data.get("mix"):
        return Mixture({name: _part(recipe, name) for name in data["mix"]})
    name, spec = next(iter(recipe["modalities"].items()))
    if data.get("source") is None and len(recipe["modalities"]) > 1:
        raise MaemmError(
            f"no source is given for {', '.join(recipe['modalities'])} together; set data.source to one that reads them"
        )
    kind, options = part_of(data.get("source"), default=spec.get("type") or name)
    opener = registry.find("sources", kind)
    if len(recipe["modalities"]) == 1 and "name" in options_of(opener):
        options.setdefault("name", name)  # a source told so gives its samples under the recipe's own name
    source = opener(data.get("root"), data.get("list"), **options)
    classes = data.get("classes")
    return source if classes is None else Labelled(source, classes)


def open_set(recipe: Mapping[str, Any], name: str) -> Source:
    """One data set of ``data.mix``. Raises :class:`MaemmError` where there is none of that name."""
    return _part(recipe, name).source


def _part(recipe: Mapping[str, Any], name: str) -> Part:
    data = recipe["data"]
    if name not in (data.get("mix") or {}):
        known = ", ".join(data.get("mix") or {}) or "none"
        raise MaemmError(f"the recipe mixes no data set {name!r} (data.mix: {known}); choose one of them")
    own = data["mix"][name]
    modalities = tuple(own.get("modalities") or recipe["modalities"])
    places = {key: own.get(key) for key in ("root", "list", "source")}
    taken = {key: spec for key, spec in recipe["modalities"].items() if key in modalities}
    try:
        source = open_source({**recipe, "modalities": taken, "data": {**data, "mix": None, **places}})
    except MaemmError as error:
        raise MaemmError(f"data.mix.{name}: {error}") from None
    return Part(source, modalities, own.get("passes") or 1.0, own.get("aug_repeats") or data.get("aug_repeats") or 1)


def open_parts(recipe: Mapping[str, Any]) -> tuple[Source, Source | None]:
    """The samples to learn from, and those to validate with: a share of the same, or other data (data.validation)."""
    whole = open_source(recipe)
    if isinstance(whole, Mixture):
        for key in ("shots", "balance", "epoch", "fold"):
            if recipe["data"].get(key):
                raise MaemmError(f"data.{key} cannot be told for data.mix; leave one of them out")
    whole, _ = open_fold(recipe, whole)
    source, held_out = _held_out(recipe, whole)
    shots = recipe["data"].get("shots")
    if shots is not None:
        rows = Shots.parse(str(shots)).choose(labels_of(source), recipe["train"]["seed"], source.classes)
        source = Subset(source, rows)
    return source, held_out


def open_fold(recipe: Mapping[str, Any], source: Source | None = None) -> tuple[Source, Source | None]:
    """All samples, and None; with ``data.fold`` those that may be learned from, and those that are left out."""
    source, data = open_source(recipe) if source is None else source, recipe["data"]
    if data.get("fold") is None:
        return source, None
    return Fold.parse(data["fold"], data.get("groups")).split(source, recipe["train"]["seed"])


def _held_out(recipe: Mapping[str, Any], source: Source) -> tuple[Source, Source | None]:
    validation = recipe["data"].get("validation")
    if validation is None:
        return source, None
    if isinstance(source, Mixture):
        if isinstance(validation, str):
            raise MaemmError(
                "data.validation is other data, which cannot be told for data.mix; give a share, such as 0.1"
            )
        pairs = {name: _held_out(recipe, one.source) for name, one in source.parts.items()}
        parts = [{name: replace(one, source=pairs[name][n]) for name, one in source.parts.items()} for n in (0, 1)]
        return Mixture(parts[0]), Mixture(parts[1])
    if isinstance(validation, str):
        return source, open_source({**recipe, "data": {**recipe["data"], "root": validation, "list": None}})
    held = round(validation * len(source))
    if not 0 < validation < 1 or not 0 < held < len(source):
        raise MaemmError(
            f"data.validation {validation:g} holds out {held} of {len(source):,} samples; give a share between 0 and 1 "
            "that leaves some on either side"
        )
    order = np.random.default_rng(derive(recipe["train"]["seed"], "validation")).permutation(len(source))
    return Subset(source, np.sort(order[held:])), Subset(source, np.sort(order[:held]))
