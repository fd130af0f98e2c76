"""The file of a study: which one a name means, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from maemm import config
from maemm.config import reader
from maemm.config.layers import flatten
from maemm.config.messages import validate
from maemm.config.names import studies
from maemm.config.paths import expanded
from maemm.config.schema import key_types
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import PositiveInt, Repeats

Measure = Literal["linear", "knn", "rank"]
MEASURES: tuple[Measure, ...] = ("linear", "knn", "rank")
SEEDS = 3


class StudyFile(BaseModel):
    """The keys of a study's file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    recipe: str = Field(description="a packaged recipe, a file or a run folder")
    base: dict[str, Any] = Field({}, description="changes of the recipe for all variants, nested as in a recipe")
    variants: dict[str, dict[str, Any] | None] = Field({}, description="changes by the name of the variant")
    sets: list[str] = Field([], description="variants as KEY=V1,V2, as after --set")
    one_at_a_time: bool = Field(False, description="of sets: change one key at a time, not all combinations")
    reference: str | None = Field(None, description="the variant that others are compared with; null: the base")
    seeds: Repeats = Field(SEEDS, description="runs of each variant")
    steps: PositiveInt | None = Field(None, description="steps of each run; null: as the recipe says")
    measures: list[Measure] = Field(list(MEASURES), description="of the frozen features")
    samples: PositiveInt | None = Field(None, description="samples of either part that features are measured on")


def file_of(name: str) -> Path | None:
    """The file of a study: a packaged one, or a YAML file that is a study; None for a recipe.

    Raises :class:`MaemmError` for a name that is neither a study's nor a recipe's.
    """
    known = studies()
    if name in known:
        return known[name]
    path = expanded(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        values = reader.read(path, config.shown(path))[0]
        return path if {"recipe", "variants", "sets"} & values.keys() else None
    try:
        config.locate(name)
    except MaemmError:
        ends = [known_name for known_name in known if known_name.rpartition("/")[2] == name]
        if ends:
            raise MaemmError(f"unknown study {name!r}; did you mean {ends[0]!r}?") from None
        if name not in config.packaged() and "/" in name and not path.exists() and "studies" in name.split("/"):
            raise MaemmError(f"unknown study {name!r}; {advice(name, known, 'see: maemm ablate --help')}") from None
        raise
    return None


def read(path: Path, name: str) -> StudyFile:
    """The file of a study. Raises :class:`MaemmError` with a line for each mistake."""
    values, lines = reader.read(path, name)

    def origin(key: str) -> str:
        while key and key not in lines:
            key = key.rpartition(".")[0]
        return f"{name}, line {lines[key]}" if key else name

    study, mistakes = validate(StudyFile.model_validate_json, values, "", key_types(StudyFile), origin)
    if mistakes:
        raise MaemmError("\n".join(mistakes))
    return study


def recipe_of(path: Path, recipe: str) -> str:
    """The recipe of a study's file: one beside the file, or what any recipe's name means."""
    sibling = path.parent / recipe
    return str(sibling) if sibling.is_file() else recipe


def base_of(file: StudyFile) -> dict[str, Any]:
    """The changes for all variants, by dotted keys."""
    return flatten(file.base)
