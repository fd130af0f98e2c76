"""The result of a comparison of subsets: the table, what each modality is worth, a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import factorial, sqrt
from pathlib import Path
from typing import Any

from maemm.tasks._shared.baselines import RAW, TRAINED, UNTRAINED
from maemm.tasks._shared.comparison import Cell
from maemm.tasks.modalities.subsets import COMPONENTS, Losses, Subset, title
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


def _relative(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
