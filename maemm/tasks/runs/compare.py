"""Several runs side by side: what differs in their recipes, and what they measured at equal steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm import config
from maemm.config import RECIPE, reader
from maemm.config.layers import flatten
from maemm.config.messages import value_text
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.run_files import RunContents, read_run
from maemm.tasks.runs.folders import METRICS, checkpoints_in
from maemm.train.figures import MONITORED, higher_is_better
from maemm.ui.text import columns, number

STEPS = 8  # at which values are compared, at most
ON_THE_PAGE = ("grad_norm", "lr", "samples_per_second")  # alone, as curves
_NOT_COMPARED = ("out", "name")  # keys that differ in any two runs


@dataclass
class Compared:
    """A run among others."""

    name: str  # the part of its path that tells it from the others
    contents: RunContents
    recipe: dict[str, Any]

    def values(self, column: str) -> dict[int, float]:
        """{step: value} of the finite values of a column."""
        steps, values = self.contents.column(column)
        return {int(step): value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}


@dataclass
class Comparison:
    """What ``maemm runs compare`` shows."""

    runs: list[Compared]
    notes: list[str] = field(default_factory=list)
    page: Path | None = None

    def columns(self) -> list[str]:
        """The columns that are compared, of those that at least two runs have."""
        names = dict.fromkeys(name for run in self.runs for name in run.contents.names(""))
        wanted = ["loss", *(name for name in names if name.startswith(("terms.", "validation.")))]
        wanted += ["monitor.relative_loss"]
        wanted += [name for name in names if name.startswith("monitor.") and name.rpartition(".")[2] in MONITORED]
        wanted += ON_THE_PAGE
        terms = [name for name in wanted if name.startswith("terms.")]
        if len(terms) == 1:  # the same as the loss, but for its weight
            wanted.remove(terms[0])
        return [name for name in wanted if sum(bool(run.values(name)) for run in self.runs) > 1]

    def differences(self) -> list[tuple[str, list[str]]]:
        """(dotted key, its value in each run) of all that differs between their recipes."""
        flat = [flatten(run.recipe) for run in self.runs]
        keys = dict.fromkeys(key for recipe in flat for key in recipe if key not in _NOT_COMPARED)
        missing = object()
        rows = []
        for key in keys:
            values = [recipe.get(key, missing) for recipe in flat]
            if any(value != values[0] or type(value) is not type(values[0]) for value in values):
                rows.append((key, ["-" if value is missing else value_text(value) for value in values]))
        return rows

    def at_equal_steps(self, column: str) -> list[tuple[int, list[float]]]:
        """(step, value in each run) at some of the steps at which all runs that have the column were measured."""
        values = [run.values(column) for run in self.runs]
        present = [of_run for of_run in values if of_run]
        common = sorted(set.intersection(*map(set, present))) if present else []
        if len(common) > STEPS:
            common = [common[round(place * (len(common) - 1) / (STEPS - 1))] for place in range(STEPS)]
        return [(step, [of_run.get(step, math.nan) for of_run in values]) for step in common]

    def best(self, column: str) -> list[tuple[float, int] | None]:
        """(best value, step) of each run; the last one where it is not known which is better."""
        higher = higher_is_better(column)
        best: list[tuple[float, int] | None] = []
        for run in self.runs:
            values = run.values(column)
            if not values:
                best.append(None)
            elif higher is None:
                best.append((values[max(values)], max(values)))
            else:
                step = (max if higher else min)(values, key=lambda step: values[step])
                best.append((values[step], step))
        return best

    def record(self) -> dict[str, Any]:
        """For JSON."""
        names = [run.name for run in self.runs]
        return {
            "runs": [{"name": run.name, "path": str(run.contents.folder)} for run in self.runs],
            "recipe": {key: dict(zip(names, values, strict=True)) for key, values in self.differences()},
            "metrics": {
                column: [{"step": step, **dict(zip(names, values, strict=True))} for step, values in rows]
                for column in self.columns()
                if (rows := self.at_equal_steps(column))
            },
            "best": {
                column: {
                    name: {"value": best[0], "step": best[1]}
                    for name, best in zip(names, self.best(column), strict=True)
                    if best is not None
                }
                for column in self.columns()
            },
            "notes": self.notes,
            "page": None if self.page is None else str(self.page),
        }

    # ------------------------------------------------------------------------------------------------- tables
    def recipe_table(self) -> list[list[str]]:
        return [["key", *(run.name for run in self.runs)], *([key, *values] for key, values in self.differences())]

    def metric_table(self, column: str) -> list[list[str]]:
        """The values of a column at equal steps, and the best of each run."""
        rows = [[column, *(run.name for run in self.runs)]]
        for step, values in self.at_equal_steps(column):
            rows.append([f"step {step:,}", *(_text(value) for value in values)])
        if higher_is_better(column) is not None:
            best = self.best(column)
            rows.append(["best, at step", *("-" if x is None else f"{_text(x[0])} at {x[1]:,}" for x in best)])
        return rows

    def __str__(self) -> str:
        lines = [f"note: {note}" for note in self.notes]
        if self.differences():
            lines += columns(self.recipe_table())
        else:
            lines.append("the recipes are the same")
        for column in self.columns():
            if column not in ON_THE_PAGE:
                lines += ["", *columns(self.metric_table(column))]
        return "\n".join(lines)


def _text(value: float) -> str:
    return number(value) if math.isfinite(value) else "-"


def compared(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Read the runs. Raises :class:`MaemmError` for less than two, and for a folder that holds none."""
    paths = [expanded(folder) for folder in folders]
    if len(paths) < 2:
        raise MaemmError("a comparison needs two runs or more; write: maemm runs compare RUN RUN")
    for place, path in enumerate(paths):
        _check_run(path)
        if path.resolve() in [other.resolve() for other in paths[:place]]:
            raise MaemmError(f"{path} is given twice; give another run")
    comparison = Comparison([])
    for path, name in zip(paths, _names(paths), strict=True):
        contents = read_run(path)
        comparison.notes += [f"{name}: {text}" for text in contents.unread]
        comparison.runs.append(Compared(name, contents, _recipe(path, name, comparison.notes)))
    apart = [x for x in comparison.columns() if x not in ON_THE_PAGE and not comparison.at_equal_steps(x)]
    if apart:
        comparison.notes.append(f"there is no step at which all of them have {', '.join(apart)}")
    return comparison


def _check_run(path: Path) -> None:
    if not path.is_dir():
        raise MaemmError(f"there is no run folder {path}; give folders that pretrain wrote, see: maemm runs ls")
    if (path / METRICS).exists() or checkpoints_in(path):
        return
    stages = _raw_recipe(path).get("stages")
    if isinstance(stages, Mapping) and stages:
        raise MaemmError(
            f"{path} is a run of several stages ({', '.join(stages)}); give one: {path / next(iter(stages))}"
        )
    raise MaemmError(f"{path} holds no run ({METRICS} is missing); give a run folder, see: maemm runs ls {path}")


def _raw_recipe(path: Path) -> dict[str, Any]:
    try:
        return reader.read(path / RECIPE, RECIPE)[0]
    except MaemmError:
        return {}


def _recipe(path: Path, name: str, notes: list[str]) -> dict[str, Any]:
    """With defaults for what older versions did not have; where a part of it is not there, as it stands."""
    try:
        return config.load(path)
    except MaemmError as error:
        reason = str(error).splitlines()[0]
        notes.append(f"{name}: its recipe is compared as it stands ({reason})")
        return _raw_recipe(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """The parts of the paths in which they differ."""
    whole = [path.resolve() for path in paths]
    try:
        common = os.path.commonpath(whole)
    except ValueError:  # on different drives
        return [str(path) for path in paths]
    names = [os.path.relpath(path, common) for path in whole]
    return [path.name if name == os.curdir else name for name, path in zip(names, whole, strict=True)]
