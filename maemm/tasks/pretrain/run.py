"""``maemm pretrain``: train a recipe, with pictures and a report page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maemm import config
from maemm.tasks.pretrain.report import Report
from maemm.train.loop import echo_line, train
from maemm.train.run_folder import with_stored_classes
from maemm.train.stages import train_stages


def pretrain(recipe: str | os.PathLike | Mapping[str, Any], **overrides: Any) -> Path:
    """Train a recipe (name, YAML file, run folder or dictionary) and return its run folder; called again, resume.

    ``overrides`` are dotted keys: ``pretrain("image/mae_base", **{"data.root": "photos"})``. Raises
    :class:`maemm.MaemmError` for anything wrong with the recipe or the data.
    """
    name = os.fspath(recipe) if isinstance(recipe, os.PathLike) else recipe
    return train_recipe(config.load(name, overrides, training=True))


def train_recipe(recipe: dict[str, Any], *, echo: Callable[[str], Any] = echo_line) -> Path:
    """:func:`maemm.train.loop.train` of a resolved recipe, with pictures of reconstructions and ``report.html``.

    Where the recipe has ``stages``, all of them, see :func:`maemm.train.stages.train_stages`.
    """
    if recipe.get("stages"):
        return train_stages(recipe, echo=echo, make_callback=Report)
    if recipe.get("out"):  # one stage of a run may be trained further by itself
        recipe = with_stored_classes(Path(recipe["out"]), recipe)
    return train(recipe, echo=echo, callback=Report())
