"""The results of a comparison: a table of means and stds, metrics of each class, a JSON record."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from maemm.data.bad_samples import BadSample
from maemm.model.metrics import average_precision
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.overlap import copies, overlap
from maemm.tasks._shared.tables import Choice
from maemm.ui.text import aligned

FEW_CLASSES = 20  # a confusion matrix of so many still fits on a screen
_OPTION_NAMES = {"l2_c": "C", "base_lr": "base learning rate"}  # common names of the options that are chosen


@dataclass
class Cell:
    """One kind of features under one protocol with one number of labels."""

    features: str
    protocol: str
    shots: str
    values: list[list[float]] = field(default_factory=list)  # accuracy, or mAP, by seed and fold
    confusion: np.ndarray | None = None  # (classes, classes) counts of the first seed: rows truth, columns answer
    classes: tuple[str, ...] | None = None
    predictions: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # multi-label: (scores, truth)
    choices: list[Choice] = field(default_factory=list)  # in the order of the values: by seed, then by fold
    fixed: bool = False  # nothing in it is random: its values are of one seed though there are several

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return "mAP" if self.predictions else "accuracy"

    @property
    def mean(self) -> float:
        """Mean over seeds and folds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (of their means over folds); with one seed over folds. None: nothing varies."""
        if self.fixed:
            return None
        means = [np.mean(folds) for folds in self.values] if len(self.values) > 1 else self.values[0]
        return float(np.std(means, ddof=1)) if len(means) > 1 else None

    def add(self, truth: np.ndarray, scores: np.ndarray, classes: tuple[str, ...] | None, count: int) -> None:
        """Add the answers on one test part to the metrics of each class.

        ``truth``: (n,) labels or (n, classes) of 0 and 1; ``scores``: (n, classes); ``count``: number of classes.
        """
        if truth.ndim == 2:
            self.predictions.append((scores, truth))
            self.classes = classes or tuple(str(i) for i in range(truth.shape[1]))
            return
        size = max(count, int(truth.max()) + 1, 0 if self.confusion is None else len(self.confusion))
        counts = confusion_counts(truth, scores.argmax(1), size)
        if self.confusion is not None:
            counts += np.pad(self.confusion, (0, size - len(self.confusion)))
        self.confusion, self.classes = counts, classes or tuple(str(i) for i in range(size))

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Samples, recall and precision, or multi-label average precision, of each class that occurs."""
        if self.predictions:
            scores, truth = (np.concatenate(arrays) for arrays in zip(*self.predictions, strict=True))
            return average_precision_rows(scores, truth, self.classes or ())
        assert self.confusion is not None, "no answers were added"
        return per_class_rows(self.confusion, self.classes or ())

    def per_class_text(self) -> str:
        """:attr:`per_class` as a table, with the confusion matrix where it fits on a screen."""
        if self.confusion is None:
            return average_precision_text(self.per_class)
        return per_class_text(self.confusion, self.classes or ())

    def notes(self) -> list[str]:
        """Notes on the choices, each once."""
        return [f"{self._label()}: {note}" for note in dict.fromkeys(choice.note for choice in self.choices) if note]

    def chosen(self) -> str:
        """How often which value was chosen, the most frequent first."""
        counts = Counter(choice.value for choice in self.choices).most_common()
        values = f"{counts[0][0]:g}" if len(counts) == 1 else ", ".join(f"{value:g} ({n}x)" for value, n in counts)
        return f"{self._label()}: {_OPTION_NAMES[self.choices[0].option]} {values}"

    def _label(self) -> str:
        return f"{self.features}, {self.protocol}" + ("" if self.shots == "all" else f", {_labels(self.shots)}")

    def record(self) -> dict[str, Any]:
        """For JSON."""
        chosen = {}
        if self.choices:  # a list for each seed, as the values are
            folds, values = len(self.values[0]), [choice.value for choice in self.choices]
            chosen[self.choices[0].option] = [values[i : i + folds] for i in range(0, len(values), folds)]
        return {
            "features": self.features,
            "protocol": self.protocol,
            "shots": self.shots,
            self.metric: self.mean,
            "std": self.std,
            "values": self.values,
            **({"chosen": chosen} if chosen else {}),
            "per_class": self.per_class,
            **({} if self.confusion is None else {"confusion": self.confusion.tolist()}),
        }

    def __str__(self) -> str:
        std = "" if self.std is None else f" ± {self.std:.3f}"
        return f"{self.mean:.3f}{std}"


@dataclass
class Comparison:
    """All cells of a comparison, and notes on the data."""

    shots: list[str]
    seeds: int
    folds: int | None = None
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    skipped: list[BadSample] = field(default_factory=list)  # samples of either part, each once

    def describe_data(self, data: Features, test: Features | None) -> None:
        """Note sizes, skipped samples and samples on both sides; the first call counts."""
        if self.data:
            return
        self.data = {"samples": len(data), "labelled": int(data.has_label.sum()), "skipped": len(data.skipped)}
        self.skipped += data.skipped + ([] if test is None else test.skipped)
        if test is None:
            self.data["copies"] = copies(data)
            if self.data["copies"]:
                self.warnings.append(
                    f"{self.data['copies']:,} of {len(data):,} samples have the content of another one: folds may "
                    "hold one on either side, and the metrics are inflated by that"
                )
        else:
            shared = overlap(data, test)
            self.data |= {"test": len(test), "test_skipped": len(test.skipped), "overlap": vars(shared)}
            if shared.content:
                self.warnings.append(str(shared))
        tested = data if test is None else test
        labels = tested.labels[tested.has_label]
        if len(labels) and not tested.multilabel:
            self.data["majority"] = round(float(np.bincount(labels).max() / len(labels)), 4)

    def __str__(self) -> str:
        columns = list(dict.fromkeys((cell.protocol, cell.shots) for cell in self.cells))
        heads = [
            name if shots == "all" and len(self.shots) == 1 else f"{name}, {_labels(shots)}" for name, shots in columns
        ]
        rows: dict[str, dict[tuple[str, str], str]] = {}
        if "majority" in self.data:
            rows["largest class"] = dict.fromkeys(columns, f"{self.data['majority']:.3f}")
        for cell in self.cells:
            rows.setdefault(cell.features, {})[cell.protocol, cell.shots] = str(cell)
        corner = "features, mAP" if any(cell.predictions for cell in self.cells) else "features"
        body = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
        lines = aligned([[corner, *heads], *body])
        chosen = [f"  {cell.chosen()}" for cell in self.cells if cell.choices]
        if chosen:
            lines += ["", "Chosen inside the training part:", *chosen]
        return "\n".join([*lines, "", self._summary()])

    def _summary(self) -> str:
        """Samples, folds, seeds and what was skipped, in one line."""
        data = self.data
        size = f"{data['labelled']:,} {'labelled' if 'samples' in data else 'test'} samples"
        if "test" in data:
            size += f", {data['test']:,} of the test part"
        parts = [size]
        if self.folds:
            parts.append(f"{self.folds} folds")
        if not all(cell.fixed for cell in self.cells):
            parts.append(f"{self.seeds} seed{'s' if self.seeds > 1 else ''}")
        if any(cell.std is not None for cell in self.cells):
            parts.append(f"± standard deviation over {'seeds' if self.seeds > 1 else 'folds'}")
        skipped = data["skipped"] + data.get("test_skipped", 0)
        if skipped:
            first = f" (first: {self.skipped[0].id}: {self.skipped[0].reason})" if self.skipped else ""
            parts.append(f"{skipped:,} skipped{first}")
        return "; ".join(parts)

    def details(self) -> str:
        """Metrics of each class, of the first seed of the last row."""
        return self.cells[-1].per_class_text()

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "seeds": self.seeds,
            "folds": self.folds,
            "data": self.data,
            "bad_samples": [asdict(bad) for bad in self.skipped],
            "notes": self.notes,
            "warnings": self.warnings,
            "classes": list(self.cells[0].classes or ()) if self.cells else [],
            "results": [cell.record() for cell in self.cells],
        }


def _labels(shots: str) -> str:
    if shots == "all":
        return "all labels"
    return f"{shots} of labels" if shots.endswith("%") else f"{shots} per class"


# ---------------------------------------------------------------------------------------- metrics of each class
def confusion_counts(truth: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """(n,) labels and answers below ``classes`` -> (classes, classes) int64: rows truth, columns answer."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, answers, labels=np.arange(classes))


def per_class_rows(confusion: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Samples, recall and precision of each class that occurs in the truth or the answers; None for 0 / 0."""
    rows = []
    for i, name in enumerate(classes):
        samples, right, answered = int(confusion[i].sum()), int(confusion[i, i]), int(confusion[:, i].sum())
        if samples or answered:
            recall, precision = (round(right / n, 4) if n else None for n in (samples, answered))
            rows.append({"class": name, "samples": samples, "recall": recall, "precision": precision})
    return rows


def average_precision_rows(scores: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Samples and average precision of each class that occurs, from (n, classes) scores and 0 or 1."""
    precisions = average_precision(scores, truth)
    return [
        {"class": name, "samples": int(truth[:, i].sum()), "average_precision": round(float(precisions[i]), 4)}
        for i, name in enumerate(classes)
        if truth[:, i].any()
    ]


def per_class_text(confusion: np.ndarray, classes: tuple[str, ...]) -> str:
    """:func:`per_class_rows` as a table, with the confusion matrix where it fits on a screen."""
    rows = [["class", "samples", "recall", "precision"]]
    for row in per_class_rows(confusion, classes):
        rates = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("recall", "precision")]
        rows.append([row["class"], f"{row['samples']:,}", *rates])
    lines = aligned(rows)
    if len(classes) <= FEW_CLASSES:
        head = ["truth \\ answer", *(name[:8] for name in classes)]
        body = [[name, *map(str, counts)] for name, counts in zip(classes, confusion, strict=True)]
        lines += ["", *aligned([head, *body])]
    return "\n".join(lines)


def average_precision_text(rows: list[dict[str, Any]]) -> str:
    """:func:`average_precision_rows` as a table."""
    body = [[row["class"], f"{row['samples']:,}", f"{row['average_precision']:.3f}"] for row in rows]
    return "\n".join(aligned([["class", "samples", "average precision"], *body]))
