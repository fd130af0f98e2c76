"""The figures of a comparison: a table with spread, confusions, a line of JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from maemm.data.bad_samples import BadSample
from maemm.model.metrics import average_precision
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.splits import copies, overlap
from maemm.tasks._shared.tables import Choice
from maemm.ui.text import aligned

FEW_CLASSES = 20  # so many still fit on a screen
_OPTIONS = {"l2_c": "C", "base_lr": "base learning rate"}  # what people call what is chosen


@dataclass
class Cell:
    """One kind of features under one protocol with one number of labels."""

    features: str
    protocol: str
    shots: str
    values: list[list[float]] = field(default_factory=list)  # accuracy, or mAP, by seed and fold
    confusion: np.ndarray | None = None  # (classes, classes) counts of the first seed: truth down, answer across
    classes: tuple[str, ...] | None = None
    asked: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # (scores, truth) of several labels
    choices: list[Choice] = field(default_factory=list)  # in the order of the values: by seed, then by fold

    @property
    def metric(self) -> str:
        """What is measured."""
        return "mAP" if self.asked else "accuracy"

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (of their means over folds); over folds where there is one seed."""
        means = [np.mean(one) for one in self.values] if len(self.values) > 1 else self.values[0]
        return float(np.std(means, ddof=1)) if len(means) > 1 else None

    def add(self, truth: np.ndarray, scores: np.ndarray, classes: tuple[str, ...] | None, count: int) -> None:
        """Count answers; where samples may have several labels, keep scores for the precision of each class."""
        if truth.ndim == 2:
            self.asked.append((scores, truth))
            self.classes = classes or tuple(str(i) for i in range(truth.shape[1]))
            return
        answers = scores.argmax(1)
        size = max(count, int(truth.max()) + 1)
        table = np.zeros((size, size), np.int64)
        np.add.at(table, (truth, answers), 1)
        if self.confusion is not None:
            old = self.confusion
            size = max(size, len(old))
            table = np.pad(table, (0, size - len(table))) + np.pad(old, (0, size - len(old)))
        self.confusion, self.classes = table, classes or tuple(str(i) for i in range(size))

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Samples, recall and precision of each class, where it occurs; of several labels, average precision."""
        if self.asked:
            return precisions(*(np.concatenate(some) for some in zip(*self.asked, strict=True)), self.classes)
        return per_class(self.confusion, self.classes)

    def notes(self) -> list[str]:
        """What is to be said about the choices, each once."""
        return [f"{self._label()}: {one}" for one in dict.fromkeys(one.note for one in self.choices) if one]

    def chosen(self) -> str:
        """How often which value was chosen, the most frequent first."""
        counts = Counter(one.value for one in self.choices).most_common()
        often = f"{counts[0][0]:g}" if len(counts) == 1 else ", ".join(f"{value:g} ({n}x)" for value, n in counts)
        return f"{self._label()}: {_OPTIONS[self.choices[0].option]} {often}"

    def _label(self) -> str:
        return f"{self.features}, {self.protocol}" + ("" if self.shots == "all" else f", {_labels(self.shots)}")

    def _chosen(self) -> dict[str, Any]:
        """The choices as the values stand: a list for each seed."""
        if not self.choices:
            return {}
        folds = len(self.values[0])
        values = [one.value for one in self.choices]
        return {"chosen": {self.choices[0].option: [values[i : i + folds] for i in range(0, len(values), folds)]}}

    def __str__(self) -> str:
        std = "" if self.std is None else f" ± {self.std:.3f}"
        return f"{self.mean:.3f}{std}"


def per_class(confusion: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Samples, recall and precision of each class that occurs, from counts (truth down, answer across)."""
    found = []
    for i, name in enumerate(classes):
        asked, right, said = int(confusion[i].sum()), int(confusion[i, i]), int(confusion[:, i].sum())
        if asked or said:
            recall, precision = (round(right / n, 4) if n else None for n in (asked, said))
            found.append({"class": name, "samples": asked, "recall": recall, "precision": precision})
    return found


def precisions(scores: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Samples and average precision of each class that occurs, from (n, classes) scores and 0 or 1."""
    each = average_precision(scores, truth)
    return [
        {"class": name, "samples": int(truth[:, i].sum()), "average_precision": round(float(each[i]), 4)}
        for i, name in enumerate(classes)
        if truth[:, i].any()
    ]


@dataclass
class Comparison:
    """All cells of a comparison and what is to be said about the data."""

    shots: list[str]
    seeds: int
    folds: int | None = None
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    skipped: list[BadSample] = field(default_factory=list)  # samples of either part, each once

    def tell(self, data: Features, test: Features | None) -> None:
        """Take note of the sizes, of what was skipped, and of samples on both sides; once."""
        if self.data:
            return
        self.data = {"samples": len(data), "labelled": int(data.has_label.sum()), "skipped": len(data.skipped)}
        self.skipped += data.skipped + ([] if test is None else test.skipped)
        asked = data if test is None else test
        if test is None:
            self.data["copies"] = copies(data)
            if self.data["copies"]:
                self.warnings.append(
                    f"{self.data['copies']:,} of {len(data):,} samples have the content of another one: folds may "
                    "hold one on either side, and the metrics are inflated by that"
                )
        else:
            found = overlap(data, test)
            self.data |= {"test": len(test), "test_skipped": len(test.skipped), "overlap": vars(found)}
            if found.content:
                self.warnings.append(str(found))
        labels = asked.labels[asked.has_label]
        if len(labels) and not asked.multilabel:
            self.data["majority"] = round(float(np.bincount(labels).max() / len(labels)), 4)

    # ------------------------------------------------------------------------------------------ for people
    def __str__(self) -> str:
        columns = list(dict.fromkeys((one.protocol, one.shots) for one in self.cells))
        heads = [
            name if shots == "all" and len(self.shots) == 1 else f"{name}, {_labels(shots)}" for name, shots in columns
        ]
        multilabel = any(one.asked for one in self.cells)
        rows = {}
        for one in self.cells:
            rows.setdefault(one.features, {})[one.protocol, one.shots] = str(one)
        if "majority" in self.data:
            rows = {"largest class": dict.fromkeys(columns, f"{self.data['majority']:.3f}"), **rows}
        body = [[name, *(some.get(column, "") for column in columns)] for name, some in rows.items()]
        table = aligned([["features, mAP" if multilabel else "features", *heads], *body])
        chosen = [one.chosen() for one in self.cells if one.choices]
        told = ["", "Chosen inside the training part:", *(f"  {one}" for one in chosen)] if chosen else []
        return "\n".join([*table, *told, "", self._about()])

    def _about(self) -> str:
        known = self.data
        size = f"{known['labelled']:,} {'labelled' if 'samples' in known else 'test'} samples"
        if "test" in known:
            size += f", {known['test']:,} of the test part"
        how = [size]
        if self.folds:
            how.append(f"{self.folds} folds")
        how.append(f"{self.seeds} seed{'s' if self.seeds > 1 else ''}")
        if any(one.std is not None for one in self.cells):
            how.append(f"± standard deviation over {'seeds' if self.seeds > 1 else 'folds'}")
        skipped = known["skipped"] + known.get("test_skipped", 0)
        if skipped:
            first = f" (first: {self.skipped[0].id}: {self.skipped[0].reason})" if self.skipped else ""
            how.append(f"{skipped:,} skipped{first}")
        return "; ".join(how)

    def details(self) -> str:
        """Table per class and confusions of the last row, of the first seed."""
        last = self.cells[-1]
        return precision_table(last.per_class) if last.asked else details(last.confusion, last.classes)

    # ------------------------------------------------------------------------------------------ for programs
    def record(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        cells = [
            {
                "features": one.features,
                "protocol": one.protocol,
                "shots": one.shots,
                one.metric: one.mean,
                "std": one.std,
                "values": one.values,
                **one._chosen(),
                "per_class": one.per_class,
                **({} if one.confusion is None else {"confusion": one.confusion.tolist()}),
            }
            for one in self.cells
        ]
        classes = list(self.cells[0].classes) if self.cells else []
        rest = {"data": self.data, "bad_samples": [asdict(one) for one in self.skipped], "notes": self.notes}
        rest |= {"warnings": self.warnings, "classes": classes}
        return {"seeds": self.seeds, "folds": self.folds, **rest, "results": cells}


def _labels(shots: str) -> str:
    if shots == "all":
        return "all labels"
    return f"{shots} of labels" if shots.endswith("%") else f"{shots} per class"


def details(confusion: np.ndarray, classes: tuple[str, ...]) -> str:
    """A table per class, and the confusions where they fit on a screen."""
    rows = [["class", "samples", "recall", "precision"]]
    for one in per_class(confusion, classes):
        shown = ["" if one[key] is None else f"{one[key]:.3f}" for key in ("recall", "precision")]
        rows.append([one["class"], f"{one['samples']:,}", *shown])
    lines = aligned(rows)
    if len(classes) <= FEW_CLASSES:
        short = [name[:8] for name in classes]
        table = [
            ["truth \\ answer", *short],
            *([name, *map(str, row)] for name, row in zip(classes, confusion, strict=True)),
        ]
        lines += ["", *aligned(table)]
    return "\n".join(lines)


def precision_table(rows: list[dict[str, Any]]) -> str:
    """What :func:`precisions` gives, as text."""
    body = [[one["class"], f"{one['samples']:,}", f"{one['average_precision']:.3f}"] for one in rows]
    return "\n".join(aligned([["class", "samples", "average precision"], *body]))
