"""Data opened with a recipe, the given one or the one that fits the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm import config
from maemm.config.guess import guess
from maemm.config.paths import expanded
from maemm.contract import Modality, Source
from maemm.contract.errors import MaemmError
from maemm.data.open import open_source
from maemm.model.build import build_modalities
from maemm.tasks._shared.data_objects import path_of

Recipe = str | Path | Mapping[str, Any] | None
Overrides = Mapping[str, Any] | Iterable[str] | None


@dataclass(frozen=True)
class Opened:
    """A source and the modalities, without parameters, that its samples are for."""

    data: str
    name: str  # of the recipe
    ending: str | None  # of the file name by which the recipe was chosen; None: the recipe was given
    recipe: dict[str, Any]
    source: Source
    modalities: dict[str, Modality]
    stages: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # of a recipe that has several; ``recipe`` is the first

    @property
    def title(self) -> str:
        """ "photos as photo/base (chosen by .jpg)"."""
        return f"{self.data} as {self.name}" + (f" (chosen by {self.ending})" if self.ending else "")

    @property
    def stem(self) -> str:
        """The name of the data, for names of files about them."""
        return expanded(self.data).resolve().name or "data"


def open_data(data: str | os.PathLike, recipe: Recipe = None, overrides: Overrides = None) -> Opened:
    """Open ``data`` with a recipe (name, file, run folder or dictionary; None: the one for such files).

    ``overrides`` change the recipe. Raises :class:`MaemmError` where no recipe or several fit, and for data without
    samples.
    """
    data, ending = path_of(data, "this"), None
    if recipe is None:
        recipe, ending = guess(data)
    name = "the given recipe" if isinstance(recipe, Mapping) else os.fspath(recipe)
    resolved = config.resolve(recipe, overrides)
    stages = {name: stage.values for name, stage in resolved.stages.items()}
    values = next(iter(stages.values()), resolved.values)
    values["data"] = {**values["data"], "root": data, "mix": None}
    source = open_source(values)
    if not len(source):
        raise MaemmError(f"there are no samples ({data}); give data that are not empty")
    return Opened(data, name, ending, values, source, build_modalities(values), stages)
