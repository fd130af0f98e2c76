"""``maemm data check`` and ``maemm data stats``: what is in a data set, before anything is trained on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.config.options import Option, options_of
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.atomic import write_whole
from maemm.data.lists import strays
from maemm.data.loader import name_of
from maemm.data.locks import one_writer
from maemm.data.single_pass import Progress
from maemm.registry.make import part_of
from maemm.tasks._shared.opened_data import Opened, Overrides, Recipe, open_data
from maemm.tasks.data.findings import Findings, yaml_list
from maemm.tasks.data.scan import ScanState, complete, scan_rows


@dataclass(frozen=True)
class Checked:
    """What :func:`data_check` or :func:`data_stats` found."""

    opened: Opened
    findings: Findings
    path: Path | None = None  # of the list of samples

    def __str__(self) -> str:
        findings = self.findings
        first = f"{self.opened.title}: {findings.samples:,} samples, {findings.broken:,} broken"
        first += f", {len(findings.same):,} repeated (list: {self.path})"
        lines = [first, *findings.lines(), *_stray_files(self.opened)]
        if any(
            len(modality.statistics) and self._is_normalised(name) for name, modality in findings.modalities.items()
        ):
            lines += ["to normalise with this mean and std, in the recipe:", *self.yaml()]
        return "\n".join(lines)

    def yaml(self) -> list[str]:
        """Lines for a recipe with mean and std of every modality; comments where it has no such options."""
        lines = ["modalities:"]
        for name, modality in self.findings.modalities.items():
            statistics = modality.statistics
            if not len(statistics):
                lines.append(f"  {name}: {{}}  # nothing to normalise")
                continue
            normalised = self._is_normalised(name)
            lines.append(f"  {name}:" if normalised else f"  {name}: {{}}  # has no options mean and std")
            for key, values in (("mean", statistics.mean), ("std", statistics.std)):
                text = yaml_list(values)
                option = self._options(name).get(key)
                if len(values) == 1 and option is not None and "[" not in option.type:  # it accepts no list
                    text = text[1:-1]
                lines.append(f"    {'' if normalised else '# '}{key}: {text}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        path = {} if self.path is None else {"list": str(self.path)}
        return {"data": self.opened.data, "recipe": self.opened.name, **self.findings.as_dict(), **path}

    def _options(self, name: str) -> dict[str, Option]:
        """The options of a modality's class."""
        spec = self.opened.recipe["modalities"][name]
        kind, _ = part_of({key: value for key, value in spec.items() if key == "type"}, default=name)
        return options_of(registry.find("modalities", kind))

    def _is_normalised(self, name: str) -> bool:
        return {"mean", "std"} <= self._options(name).keys()


def data_check(
    data: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    recipe: Recipe = None,
    workers: int | None = None,
    overrides: Overrides = None,
    on_progress: Progress | None = None,
    echo: Callable[[str], Any] = print,
) -> Checked:
    """Read all of ``data`` once and write a CSV with a line for each sample to ``out`` (None: DATA.check.csv here).

    Broken samples with their reasons come first, then those whose content an earlier one has. An interrupted check
    resumes when called again: what was read is in a file beside ``out`` that ends in .part. ``recipe`` and
    ``overrides``: see :func:`maemm.tasks._shared.opened_data.open_data`. ``workers``: processes that read; None: as in
    the recipe. ``echo`` gets a line where a check is resumed. Raises :class:`MaemmError` for data without samples,
    and where none can be read.
    """
    opened = open_data(data, recipe, overrides)
    path = expanded(f"{opened.stem}.check.csv" if out is None else out)
    with one_writer(path, echo):
        state = ScanState(path.with_name(f"{path.name}.part"), _header(opened))
        settings = _settings(opened, workers)
        complete(state, opened.source, opened.modalities, on_progress=on_progress, echo=echo, **settings)
        findings = Findings.from_rows(state.rows(), opened.source.classes)
        write_whole(path, lambda file: findings.write_csv(state.rows, file), "the list")
        state.remove()
    return _readable(Checked(opened, findings, path))


def data_stats(
    data: str | os.PathLike,
    *,
    recipe: Recipe = None,
    workers: int | None = None,
    overrides: Overrides = None,
    on_progress: Progress | None = None,
) -> Checked:
    """Mean and std of every channel over all of ``data``, without a list of samples; see :func:`data_check`."""
    opened = open_data(data, recipe, overrides)
    findings = Findings(opened.source.classes)
    for rows in scan_rows(opened.source, opened.modalities, on_progress=on_progress, **_settings(opened, workers)):
        for row in rows:
            findings.add(row)
    return _readable(Checked(opened, findings))


def _settings(opened: Opened, workers: int | None) -> dict[str, Any]:
    data = opened.recipe["data"]
    return {"workers": data["workers"] if workers is None else workers, "timeout": data["timeout"]}


def _header(opened: Opened) -> dict[str, Any]:
    """What a scan depends on: the data, and the parts of the recipe that read them."""
    recipe = opened.recipe
    parts = json.dumps([recipe["modalities"], recipe["data"].get("source")], sort_keys=True, default=str)
    return {"data": opened.source.fingerprint(), "samples": len(opened.source), "recipe": derive(parts)}


def _readable(checked: Checked) -> Checked:
    """Raises :class:`MaemmError` where every sample is broken."""
    findings = checked.findings
    if findings.broken < findings.samples:
        return checked
    id, reason = findings.first_bad or ("", "")
    path = f"; list: {checked.path}" if checked.path else ""
    raise MaemmError(
        f"none of {findings.samples:,} samples can be read (first: {id}: {reason}{path}); "
        "give other data, or another --recipe"
    )


def _stray_files(opened: Opened) -> list[str]:
    """A line about files because of which folders are not classes."""
    source = opened.source
    if source.classes is not None or not expanded(opened.data).is_dir() or opened.recipe["data"].get("list"):
        return []
    stray = strays([name_of(source, index) for index in range(len(source))])
    if not stray:
        return []
    files = "1 file does" if len(stray) == 1 else f"{len(stray):,} files do"
    return [
        f"  no labels: {files} not lie in a folder of exactly one level, so folders are no classes (first: {stray[0]})"
    ]
