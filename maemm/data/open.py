"""Open the sources of a recipe: the whole data, one set of a mixture, training and validation parts, folds."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from maemm import registry
from maemm.config.options import check, options_of
from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.bad_samples import printable, reason_of
from maemm.data.folds import Fold
from maemm.data.labels import Labelled
from maemm.data.mixture import Mixture, Part
from maemm.data.shots import Shots, labels_of
from maemm.data.subset import Subset
from maemm.registry.make import describe_owner, part_of


def open_source(recipe: Mapping[str, Any]) -> Source:
    """The source ``data.source``; by default, with one modality, the source named like the type of that modality.

    Raises :class:`MaemmError` where there are several modalities and no ``data.source``.
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
        options.setdefault("name", name)  # the key of its samples is then the recipe's name of the modality
    check(opener, options, "data.source")
    try:
        source = _opened(opener, data.get("root"), data.get("list"), options)
    except MaemmError as error:
        if kind not in ("shards", "datasets") and _holds_shards(data.get("root")):
            raise MaemmError(
                f"the data are in shards, or elsewhere (data.root={data['root']}); set data.source=shards"
            ) from error
        raise
    classes = data.get("classes")
    return source if classes is None else Labelled(source, classes)


def _opened(opener: Any, root: Any, list: Any, options: Mapping[str, Any]) -> Source:
    """A source. Raises :class:`MaemmError` that names the plugin and the file where it cannot be opened."""
    try:
        return opener(root, list, **options)
    except (MaemmError, MemoryError):
        raise
    except Exception as error:  # whatever a plugin raises for a broken file
        path = _file_of(error) or root or list or "no data.root"
        raise MaemmError(
            f"{describe_owner(opener)} cannot open the data ({printable(str(path))}: {reason_of(error)}); look at that "
            "file, or at the plugin"
        ) from error


def _holds_shards(root: Any) -> bool:
    """Whether ``data.root`` is a URL, or a folder of tar or Parquet files."""
    if not isinstance(root, str):
        return False
    with suppress(OSError, ValueError):
        return "://" in root or any(name.endswith((".tar", ".parquet")) for name in os.listdir(expanded(root)))
    return False


def _file_of(error: Exception) -> str | None:
    """The file that was being read when ``error`` was raised: the one it names, or the innermost local variable's."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            if isinstance(value, str | os.PathLike) and os.path.isfile(value) and frame.f_code.co_filename != value:
                return os.fspath(value)
    return None


def open_set(recipe: Mapping[str, Any], name: str) -> Source:
    """One data set of ``data.mix``. Raises :class:`MaemmError` where there is none with that name."""
    return _part(recipe, name).source


def _part(recipe: Mapping[str, Any], name: str) -> Part:
    data = recipe["data"]
    if name not in (data.get("mix") or {}):
        names = ", ".join(data.get("mix") or {}) or "none"
        raise MaemmError(f"the recipe mixes no data set {name!r} (data.mix: {names}); choose one of them")
    own = data["mix"][name]
    modalities = tuple(own.get("modalities") or recipe["modalities"])
    paths = {key: own.get(key) for key in ("root", "list", "source")}
    specs = {key: spec for key, spec in recipe["modalities"].items() if key in modalities}
    try:
        source = open_source({**recipe, "modalities": specs, "data": {**data, "mix": None, **paths}})
    except MaemmError as error:
        raise MaemmError(f"data.mix.{name}: {error}") from None
    return Part(source, modalities, own.get("passes") or 1.0, own.get("aug_repeats") or data.get("aug_repeats") or 1)


def with_class_names(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the names of its data's classes, so that its checkpoints record them.

    Raises :class:`MaemmError` where the head has another number of outputs.
    """
    if recipe["data"].get("classes") is not None or not recipe.get("head"):
        return recipe
    classes, count = open_source(recipe).classes, recipe["head"]["classes"]
    if classes is None:
        return recipe
    if len(classes) != count:
        raise MaemmError(
            f"the data have {len(classes)} classes, the head {count} outputs; set head.classes={len(classes)}"
        )
    return {**recipe, "data": {**recipe["data"], "classes": list(classes)}}


def open_parts(recipe: Mapping[str, Any]) -> tuple[Source, Source | None]:
    """(training source, validation source or None): a fraction of the same data, or other data (data.validation)."""
    whole = open_source(recipe)
    if isinstance(whole, Mixture):
        for key in ("shots", "balance", "epoch", "fold"):
            if recipe["data"].get(key):
                raise MaemmError(f"data.{key} cannot be combined with data.mix; leave one of them out")
    whole, _ = open_fold(recipe, whole)
    source, held_out = _held_out(recipe, whole)
    shots = recipe["data"].get("shots")
    if shots is not None:
        rows = Shots.parse(str(shots)).choose(labels_of(source), recipe["train"]["seed"], source.classes)
        source = Subset(source, rows)
    return source, held_out


def open_fold(recipe: Mapping[str, Any], source: Source | None = None) -> tuple[Source, Source | None]:
    """(all samples, None); with ``data.fold`` (training set, test set) of that fold."""
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
                "data.validation is other data, which cannot be combined with data.mix; give a fraction, such as 0.1"
            )
        train, held = {}, {}
        for name, part in source.parts.items():
            halves = _split(part.source, validation, recipe["train"]["seed"])
            train[name], held[name] = (replace(part, source=half) for half in halves)
        return Mixture(train), Mixture(held)
    if isinstance(validation, str):
        return source, open_source({**recipe, "data": {**recipe["data"], "root": validation, "list": None}})
    return _split(source, validation, recipe["train"]["seed"])


def _split(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """(the rest, a random ``fraction`` of the samples)."""
    held = round(fraction * len(source))
    if not 0 < fraction < 1 or not 0 < held < len(source):
        raise MaemmError(
            f"data.validation {fraction:g} holds out {held} of {len(source):,} samples; give a fraction between 0 and "
            "1 that leaves samples in both parts"
        )
    order = np.random.default_rng(derive(seed, "validation")).permutation(len(source))
    return Subset(source, np.sort(order[held:])), Subset(source, np.sort(order[:held]))
