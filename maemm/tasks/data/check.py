"""``maemm data check`` and ``maemm data stats``: what is in a data set, before anything is trained on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.config.options import options_of
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.atomic import write_whole
from maemm.data.lists import strays
from maemm.data.loader import name_of
from maemm.data.single_pass import Progress
from maemm.registry.make import part_of
from maemm.tasks._shared.opened_data import Opened, Overrides, Recipe, open_data
from maemm.tasks.data.findings import Findings, numbers
from maemm.tasks.data.scan import State, look_at, run


@dataclass(frozen=True)
class Checked:
    """What :func:`data_check` or :func:`data_stats` found."""

    opened: Opened
    findings: Findings
    path: Path | None = None  # of the list of samples

    def __str__(self) -> str:
        found = self.findings
        first = f"{self.opened.title}: {found.samples:,} samples, {found.broken:,} broken"
        first += f", {len(found.same):,} repeated (list: {self.path})"
        lines = [first, *found.lines(), *_no_classes(self.opened)]
        if any(len(seen.statistics) and _has_options(self.opened, name) for name, seen in found.modalities.items()):
            lines += ["to normalise with these figures, in the recipe:", *self.yaml()]
        return "\n".join(lines)

    def yaml(self) -> list[str]:
        """Lines for a recipe with the mean and spread of every modality that has these options, comments elsewhere."""
        lines = ["modalities:"]
        for name, seen in self.findings.modalities.items():
            sign = "" if _has_options(self.opened, name) else "# "
            figures = {"mean": seen.statistics.mean, "std": seen.statistics.std}
            if not len(seen.statistics):
                lines += [f"  {name}: {{}}  # nothing to normalise"]
                continue
            lines += [f"  {name}:" if not sign else f"  {name}: {{}}  # has no options mean and std"]
            lines += [f"    {sign}{key}: {_value(self.opened, name, key, some)}" for key, some in figures.items()]
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        place = {} if self.path is None else {"list": str(self.path)}
        return {"data": self.opened.data, "recipe": self.opened.name, **self.findings.as_dict(), **place}


def data_check(
    data: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    recipe: Recipe = None,
    workers: int | None = None,
    overrides: Overrides = None,
    on_progress: Progress | None = None,
    say: Callable[[str], Any] = print,
) -> Checked:
    """Read all of ``data`` once and write a CSV with a line for each sample to ``out`` (None: DATA.check.csv here).

    Broken samples with their reasons come first, then those whose content an earlier one has. Interrupted, it goes
    on when called again: what was seen stands beside ``out`` in a file that ends in .part until all is done.
    ``workers``: processes that read; None: as the recipe says. Raises :class:`MaemmError` where there is nothing to
    read, or nothing can be read.
    """
    opened = open_data(data, recipe, overrides)
    path = Path(f"{opened.stem}.check.csv" if out is None else out)
    state = State(path.with_name(f"{path.name}.part"), _header(opened))
    settings = _settings(opened, workers)
    run(opened.source, opened.modalities, state, on_progress=on_progress, say=say, **settings)
    found = Findings.of(state.rows(), opened.source.classes)
    write_whole(path, lambda file: found.write_csv(state.rows, file), "the list")
    state.remove()
    return _some_readable(Checked(opened, found, path))


def data_stats(
    data: str | os.PathLike,
    *,
    recipe: Recipe = None,
    workers: int | None = None,
    overrides: Overrides = None,
    on_progress: Progress | None = None,
) -> Checked:
    """Mean and spread of every channel over all of ``data``, without a list; see :func:`data_check`."""
    opened, found = open_data(data, recipe, overrides), Findings()
    found.classes = opened.source.classes
    for rows in look_at(opened.source, opened.modalities, on_progress=on_progress, **_settings(opened, workers)):
        for row in rows:
            found.add(row)
    return _some_readable(Checked(opened, found))


def _settings(opened: Opened, workers: int | None) -> dict[str, Any]:
    data = opened.recipe["data"]
    return {"workers": data["workers"] if workers is None else workers, "timeout": data["timeout"]}


def _header(opened: Opened) -> dict[str, Any]:
    """What a check depends on: the data, and the parts of the recipe that read them."""
    recipe = opened.recipe
    parts = json.dumps([recipe["modalities"], recipe["data"].get("source")], sort_keys=True, default=str)
    return {"data": opened.source.fingerprint(), "samples": len(opened.source), "recipe": derive(parts)}


def _some_readable(checked: Checked) -> Checked:
    found = checked.findings
    if found.broken < found.samples:
        return checked
    ident, reason = found.first_bad or ("", "")
    place = f"; list: {checked.path}" if checked.path else ""
    raise MaemmError(
        f"none of {found.samples:,} samples can be read (first: {ident}: {reason}{place}); "
        "give other data, or another --recipe"
    )


def _no_classes(opened: Opened) -> list[str]:
    """A line about folders that look like classes and are not taken as such."""
    source = opened.source
    if source.classes is not None or not Path(opened.data).expanduser().is_dir() or opened.recipe["data"].get("list"):
        return []
    odd = strays([name_of(source, index) for index in range(len(source))])
    if not odd:
        return []
    files = "1 file does" if len(odd) == 1 else f"{len(odd):,} files do"
    return [
        f"  no labels: {files} not lie in a folder of exactly one level, so folders are no classes (first: {odd[0]})"
    ]


# ------------------------------------------------------------------------------------------------ YAML
def _options(opened: Opened, name: str) -> dict[str, Any]:
    spec = opened.recipe["modalities"][name]
    kind, _ = part_of({key: value for key, value in spec.items() if key == "type"}, default=name)
    return options_of(registry.find("modalities", kind))


def _has_options(opened: Opened, name: str) -> bool:
    return {"mean", "std"} <= _options(opened, name).keys()


def _value(opened: Opened, name: str, key: str, some: list[float]) -> str:
    """One number where the option takes no list, otherwise one for each channel."""
    option = _options(opened, name).get(key)
    single = len(some) == 1 and option is not None and "[" not in option.type
    return numbers(some)[1:-1] if single else numbers(some)
