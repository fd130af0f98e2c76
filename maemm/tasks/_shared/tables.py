"""Features -> the tables that classifiers are fitted on: labelled, finite, z-scored, with one numbering of classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.model.metrics import mean_average_precision
from maemm.tasks._shared.features import Features

EPS = 1e-6  # added to the standard deviation of a feature


@dataclass(frozen=True)
class Table:
    """Samples as a classifier sees them."""

    x: np.ndarray  # (n, D) float32, or (n, N, D) of tokens
    y: np.ndarray  # (n,) int64, 0 .. classes - 1; multi-label (n, classes) int8 of 0 and 1
    classes: int
    valid: np.ndarray | None = None  # (n, N) bool, where samples differ in their number of tokens

    @property
    def multilabel(self) -> bool:
        """Whether a sample may have several labels."""
        return self.y.ndim == 2

    def metric(self, scores: np.ndarray) -> float:
        """Accuracy of scores (n, classes); multi-label: mAP."""
        if self.multilabel:
            return mean_average_precision(scores, self.y)
        return float((scores.argmax(1) == self.y).mean())

    def select(self, rows: np.ndarray) -> Table:
        """The samples ``rows``: indices, or a bool for each."""
        return Table(self.x[rows], self.y[rows], self.classes, None if self.valid is None else self.valid[rows])


class Choice(NamedTuple):
    """The value of an option that was chosen inside the training part."""

    option: str
    value: float
    note: str = ""  # on how it was chosen


def tables(train: Features, test: Features, *, scale: bool = True) -> tuple[Table, Table]:
    """Labelled samples of both; with ``scale`` z-scored with the statistics of ``train``.

    Test labels are matched with those of ``train`` by the names of the classes, or as numbers where neither side has
    names. Raises :class:`MaemmError` for a side without labels, training labels of one class only, classes that
    ``train`` lacks, features that are not finite, and widths that differ.
    """
    if train.multilabel or test.multilabel:
        train = as_multilabel(train)
        test = as_multilabel(test, train.labels.shape[1] if train.classes is None else 0)
    train, test = train.labelled, match_classes(train, test).labelled
    check_task(train, test)
    y, train_x, test_x = train.labels, train.x, test.x
    classes = y.shape[1] if train.multilabel else max(len(train.classes or ()), int(y.max()) + 1)
    if scale:
        mean, std = train_x.mean(0), train_x.std(0) + EPS
        train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    return (
        Table(train_x.astype(np.float32, copy=False), y, classes, train.valid),
        Table(test_x.astype(np.float32, copy=False), test.labels, classes, test.valid),
    )


def held_out(train: Table, seed: int, fraction: float = 0.1) -> np.ndarray:
    """(n,) bool: a random part of ``train`` to choose options with.

    Every class with two samples or more has one on either side; multi-label classes need not.
    """
    # scikit-learn's StratifiedShuffleSplit refuses classes with a single sample.
    rng, held = np.random.default_rng(seed), np.zeros(len(train.y), bool)
    if train.multilabel:
        held[rng.permutation(len(held))[: max(1, round(len(held) * fraction))]] = True
        return held
    for label in np.unique(train.y):
        rows = rng.permutation(np.flatnonzero(train.y == label))
        held[rows[: max(round(len(rows) * fraction), 1 if len(rows) > 1 else 0)]] = True
    return held


def as_multilabel(features: Features, least: int = 0) -> Features:
    """The same with labels (n, classes) of 0 and 1 for ``least`` classes or more; -1 for a sample without labels."""
    labels, has_label = features.labels, features.has_label
    own = labels.shape[1] if features.multilabel else int(labels.max(initial=0)) + 1
    table = np.zeros((len(features), max(len(features.classes or ()), own, least)), np.int8)
    if features.multilabel:
        table[:, : labels.shape[1]] = labels
    else:
        table[np.flatnonzero(has_label), labels[has_label]] = 1
    table[~has_label] = -1
    return replace(features, labels=table)


def match_classes(train: Features, test: Features) -> Features:
    """``test`` with its labels numbered by the class names of ``train``.

    Raises :class:`MaemmError` for names that ``train`` lacks, and where only one side has names.
    """
    if train.classes == test.classes or not (train.has_label.any() and test.has_label.any()):
        return test
    if train.classes is None or test.classes is None:
        named, other = ("training", "test") if test.classes is None else ("test", "training")
        raise MaemmError(
            f"the classes of the {named} part have names, the labels of the {other} part are numbers without; give "
            "both names, or both numbers"
        )
    number = {name: i for i, name in enumerate(train.classes)}
    occurs = np.flatnonzero((test.labels > 0).any(0)) if test.multilabel else np.unique(test.labels[test.labels >= 0])
    names = [test.classes[i] for i in occurs]
    unknown = [name for name in names if name not in number]
    if unknown:
        raise MaemmError(
            f"the test part has {len(unknown)} classes that the training part does not know ({_first(unknown)}; known: "
            f"{_first(list(number))}); give data with the same class names"
        )
    if test.multilabel:
        labels = np.zeros((len(test), len(train.classes)), np.int8)
        labels[:, [number[name] for name in names]] = test.labels[:, occurs]
        labels[~test.has_label] = -1
        return replace(test, labels=labels, classes=train.classes)
    renumbered = np.array([number.get(name, -1) for name in test.classes] + [-1], np.int64)  # index -1: no label
    return replace(test, labels=renumbered[test.labels], classes=train.classes)


def check_task(train: Features, test: Features) -> None:
    """Raises :class:`MaemmError` where no classifier can be fitted on ``train`` and tested on ``test``."""
    for part, features in (("training", train), ("test", test)):
        if not len(features):
            raise MaemmError(
                f"the {part} part has no labels; give all files in a folder per class, or a list or array with labels"
            )
        bad = ~np.isfinite(features.x.reshape(len(features), -1)).all(1)
        if bad.any():
            first = features.ids[int(np.flatnonzero(bad)[0])]
            raise MaemmError(
                f"{bad.sum():,} of {len(features):,} samples of the {part} part have features that are not finite "
                f"(first: {first}); check the data and the weights"
            )
    if train.x.shape[-1] != test.x.shape[-1]:
        raise MaemmError(
            f"training features are {train.x.shape[-1]} wide, test features {test.x.shape[-1]}; embed both the same way"
        )
    if train.multilabel:
        _check_multilabel(train, test)
        return
    labels = np.unique(train.labels)
    if len(labels) < 2:
        name = train.classes[labels[0]] if train.classes else str(labels[0])
        raise MaemmError(f"all {len(train):,} training labels are {name!r}; a classifier needs two classes at least")
    unknown = np.setdiff1d(test.labels, labels)
    if len(unknown) and (train.classes is None or unknown.max() >= len(train.classes)):
        raise MaemmError(
            f"the test part has {len(unknown)} classes that the training part does not know "
            f"({_first([str(label) for label in unknown])}); give data with the same labels"
        )


def _check_multilabel(train: Features, test: Features) -> None:
    if train.labels.shape[1] != test.labels.shape[1]:
        raise MaemmError(
            f"the training part has {train.labels.shape[1]} classes, the test part {test.labels.shape[1]}; give data "
            "with the same labels"
        )
    if not ((train.labels > 0).any(0) & (train.labels == 0).any(0)).any():
        raise MaemmError(
            f"no class is on some of the {len(train):,} training samples and not on others; a classifier needs both"
        )
    if not (test.labels > 0).any():
        raise MaemmError("no sample of the test part has any of the classes; a metric needs at least one positive")


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
