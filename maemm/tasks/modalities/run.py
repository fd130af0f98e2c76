"""``maemm modalities``: every subset of inputs under kNN and a linear probe, and the loss of every output from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import factorial, sqrt
from pathlib import Path
from typing import Any

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json
from maemm.data.locks import one_writer
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset as SomeSamples
from maemm.tasks._shared.baselines import RAW, TRAINED, UNTRAINED, Show
from maemm.tasks._shared.comparison import Cell
from maemm.tasks._shared.inputs import Data, Weights, evenly_spaced, some_labels
from maemm.tasks.modalities.subsets import (
    COMPONENTS,
    Losses,
    Subset,
    Subsets,
    check_inputs,
    losses_of,
    subsets_of,
    title,
)
from maemm.tasks.probe.compare import Protocol, compare
from maemm.ui.text import aligned

PAGE, RESULTS = "report.html", "results.json"
CLASSIFIERS = ("knn", "linear")
KINDS = (RAW, UNTRAINED, TRAINED)
_HEADS = {"knn": "kNN", "linear": "linear"}


@dataclass
class Modalities:
    """The result of :func:`modalities`."""

    inputs: list[str]
    subsets: list[Subset]
    losses: Losses
    visible: float
    cells: dict[tuple[str, str, str], Cell]  # (kind, classifier, title of the subset)
    majority: float | None  # accuracy of always answering the largest class; None: no labels
    tested: int  # samples that accuracies are means over
    notes: list[str] = field(default_factory=list)
    page: Path | None = None

    def score(self, classifier: str, subset: Subset, kind: str = TRAINED) -> float:
        """Accuracy (or mAP) of a subset; of the empty one that of the largest class."""
        return self.cells[kind, classifier, title(subset)].mean if subset else self.majority or 0.0

    def worth(self, classifier: str = "linear") -> dict[str, float]:
        """{modality: what it adds in the mean over all orders in which the inputs could be added} (Shapley 1953).

        The values add up to the accuracy of all inputs together less that of the largest class.
        """
        n = len(self.inputs)
        values = {}
        for name in self.inputs:
            others = [other for other in self.inputs if other != name]
            total = 0.0
            for size in range(n):
                weight = factorial(size) * factorial(n - size - 1) / factorial(n)
                for subset in combinations(others, size):
                    more = tuple(other for other in self.inputs if other in subset or other == name)
                    total += weight * (self.score(classifier, more) - self.score(classifier, subset))
            values[name] = total
        return values

    def adds(self, name: str, classifier: str = "linear") -> tuple[float, float]:
        """(what ``name`` adds to all other inputs together, two standard errors of a difference of two accuracies)."""
        every = tuple(self.inputs)
        others = tuple(other for other in self.inputs if other != name)
        high, low = self.score(classifier, every), self.score(classifier, others)
        return high - low, 2 * sqrt(max(high * (1 - high) + low * (1 - low), 1e-6) / max(self.tested, 1))

    def verdicts(self) -> list[str]:
        """What each modality is worth, in words."""
        if not self.cells:
            return []
        worth = self.worth()
        lines = []
        for name in self.inputs:
            gain, noise = self.adds(name)
            others = title(tuple(other for other in self.inputs if other != name))
            said = f"{gain:+.3f} beside {others}"
            said += "" if abs(gain) > noise else f", within the noise of {noise:.3f}: nothing that could be seen"
            lines.append(f"{name}: worth {worth[name]:.3f} (linear), {said}")
        return lines

    def rows(self) -> list[list[str]]:
        """The table: a row for each subset."""
        heads = ["inputs"]
        if self.cells:
            heads += [
                f"{_HEADS[name]}, {kind}" for name in CLASSIFIERS for kind in KINDS if (kind, name) in self._columns
            ]
        heads += [f"loss of {output}" for output in self.losses.outputs]
        body = []
        for subset in self.subsets:
            row = [title(subset)]
            if self.cells:
                row += [str(self.cells[kind, name, title(subset)]) for name, kind in self._ordered]
            row += [_relative(self.losses.relative(title(subset), output)) for output in self.losses.outputs]
            body.append(row)
        return [heads, *body]

    @property
    def _columns(self) -> set[tuple[str, str]]:
        return {(kind, name) for kind, name, _ in self.cells}

    @property
    def _ordered(self) -> list[tuple[str, str]]:
        return [(name, kind) for name in CLASSIFIERS for kind in KINDS if (kind, name) in self._columns]

    def protocol(self) -> list[str]:
        """How it was measured, in words."""
        lines = []
        if self.cells:
            lines.append(
                "kNN and linear: accuracy (several labels: mAP) as of maemm knn and maemm probe, on the mean over the "
                "tokens of each given modality, all visible, then over modalities; untrained: the same network with "
                f"fresh weights; raw values: side by side, at most {COMPONENTS} principal components of them"
            )
            lines.append(
                "worth: what a modality adds to the linear accuracy, in the mean over all orders of adding the inputs "
                f"(Shapley values), from the largest class, {self.majority:.3f}"
            )
        lines.append(
            f"loss: {self.visible:.0%} of the tokens of the inputs are visible, all others are predicted; as a part "
            "of the loss of predicting the mean target: 1 is no better, below is better"
        )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "inputs": self.inputs,
            "visible": self.visible,
            "majority": self.majority,
            "tested": self.tested,
            "worth": {name: self.worth(name) for name in CLASSIFIERS} if self.cells else {},
            "adds": {name: self.adds(name) for name in self.inputs} if self.cells else {},
            "subsets": [
                {
                    "inputs": [*subset],
                    "scores": {
                        kind: {
                            name: self.cells[kind, name, title(subset)].mean
                            for name, own in self._ordered
                            if own == kind
                        }
                        for kind in dict.fromkeys(kind for _, kind in self._ordered)
                    },
                    "loss": self.losses.mean[title(subset)],
                    "baseline": self.losses.baseline[title(subset)],
                }
                for subset in self.subsets
            ],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = aligned(self.rows())
        if verdicts := self.verdicts():
            lines += ["", *verdicts]
        lines += ["", *self.protocol(), *self.notes]
        return "\n".join([*lines, *([f"page: {self.page}"] if self.page else [])])


def modalities(
    weights: Weights,
    data: Data = None,
    test: Data = None,
    *,
    inputs: Sequence[str] | None = None,
    visible: float = 0.5,
    samples: int | None = 2000,
    seeds: int = 1,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    pictures: int = 4,
    out: str | os.PathLike[str] | None = None,
    show: Show | None = None,
    on_progress: Progress | None = None,
    echo: Callable[[str], object] = print,
    **settings: Any,
) -> Modalities:
    """What each modality of a joint model is worth: all 2^n - 1 subsets of its inputs.

    ``weights``: a run or checkpoint folder, a weights file, or a model. ``data``: to fit classifiers on and to measure
    losses on; None: the data of its recipe. ``test``: to test on; None: folds of ``data``. ``inputs``: the modalities
    of which all subsets are given; None: all that are encoded. ``visible``: fraction of the tokens of the given
    modalities that is shown where losses are measured, in (0, 1]. ``samples``: at most so many of either part, at
    regular intervals. ``seeds``: of fits, and of untrained networks. ``out``: folder for ``results.json``, pictures and
    ``report.html``; None: nothing is written. Without labels, losses alone. Raises :class:`MaemmError`.
    """
    if not 0 < visible <= 1:
        raise MaemmError(f"visible is {visible:g}; give a fraction above 0, up to 1")
    if samples is not None and samples < 1:
        raise MaemmError(f"samples is {samples}; give 1 or more")
    subject = Subsets(
        weights, data, test, batch=batch, workers=workers, source=source, show=show, keep=False, **settings
    )
    names = check_inputs(subject.model, inputs)
    subject.subsets = subsets_of(names)
    if samples is not None:
        for part in (subject.train, subject.test):
            if part is not None and samples < len(part.source):
                part.source = SomeSamples(part.source, evenly_spaced(len(part.source), samples))
    cells, majority, tested, notes = _scored(subject, seeds)
    measured = (subject.test or subject.train).source
    losses = losses_of(
        subject.model, measured, subject.subsets, visible=visible, seed=0, batch=batch, workers=subject.train.workers,
        on_progress=on_progress,
    )  # fmt: skip
    result = Modalities(names, [*subject.subsets], losses, visible, cells, majority, tested, notes)
    if out is not None:
        from maemm.tasks.modalities.page import write_page

        folder = expanded(out)
        with one_writer(folder / RESULTS, echo):
            write_json(folder / RESULTS, result.as_dict(), "the results")
            result.page = write_page(result, subject.model, measured, folder, pictures)
    return result


def _scored(subject: Subsets, seeds: int) -> tuple[dict[tuple[str, str, str], Cell], float | None, int, list[str]]:
    parts = [part.source for part in (subject.train, subject.test) if part is not None]
    if not all(some_labels(part) for part in parts):
        return {}, None, 0, ["no accuracies: the data have no labels"]
    comparison = compare(subject, Protocol(CLASSIFIERS, seeds=seeds), kinds=KINDS)
    cells = {}
    for cell in comparison.cells:
        kind, _, subset = cell.features.partition(", ")
        cells[kind, cell.protocol, subset] = cell
    tested = int(comparison.data.get("test") or comparison.data["labelled"])
    return cells, comparison.data.get("majority", 0.0), tested, [*comparison.warnings, *comparison.notes]


def _relative(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
