"""Features -> the tables that classifiers take: labelled, finite, standardised, with one numbering of the classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.model.metrics import mean_average_precision
from maemm.tasks._shared.features import Features

EPS = 1e-6  # added to the deviation of a feature


@dataclass(frozen=True)
class Table:
    """What a classifier sees."""

    x: np.ndarray  # (n, D) float32, or (n, N, D) of tokens
    y: np.ndarray  # (n,) int64, 0 .. classes - 1; (n, classes) int8 of 0 and 1 where samples may have several
    classes: int
    valid: np.ndarray | None = None  # (n, N) bool, where samples differ in their number of tokens

    @property
    def multilabel(self) -> bool:
        """Whether samples may have several labels."""
        return self.y.ndim == 2

    def metric(self, scores: np.ndarray) -> float:
        """Accuracy of scores (n, classes), or mAP where samples may have several labels."""
        if self.multilabel:
            return mean_average_precision(scores, self.y)
        return float((scores.argmax(1) == self.y).mean())

    def select(self, rows: np.ndarray) -> Table:
        """The samples ``rows``: indices, or a bool for each."""
        return Table(self.x[rows], self.y[rows], self.classes, None if self.valid is None else self.valid[rows])


class Choice(NamedTuple):
    """What was chosen inside the training part among several values of an option."""

    option: str
    value: float
    note: str = ""  # what is to be said about it


def tables(train: Features, test: Features, *, scale: bool = True) -> tuple[Table, Table]:
    """Labelled samples of both; with ``scale`` z-scored with the statistics of ``train``.

    Test labels are matched with those of ``train`` by the names of the classes, numbers without names by themselves.
    Raises
    :class:`MaemmError` for one side without labels, training labels of one class only, classes that ``train`` does
    not know, features that are not finite, and widths that differ.
    """
    train, test = alike(train, test)
    train, test = train.labelled, match_classes(train, test).labelled
    check_task(train, test)
    classes, x, y = count_classes(train), train.x, test.x
    if scale:
        mean, std = x.mean(0), x.std(0) + EPS
        x, y = ((one - mean) / std for one in (x, y))
    return (
        Table(x.astype(np.float32, copy=False), train.labels, classes, train.valid),
        Table(y.astype(np.float32, copy=False), test.labels, classes, test.valid),
    )


def held_out(train: Table, seed: int, fraction: float = 0.1) -> np.ndarray:
    """(n,) bool: a part of ``train`` to choose with; every class keeps a sample on either side where it has two."""
    drawn, held = np.random.default_rng(seed), np.zeros(len(train.y), bool)
    if train.multilabel:
        held[drawn.permutation(len(held))[: max(1, round(len(held) * fraction))]] = True
        return held
    for label in np.unique(train.y):
        rows = drawn.permutation(np.flatnonzero(train.y == label))
        held[rows[: max(round(len(rows) * fraction), 1 if len(rows) > 1 else 0)]] = True
    return held


def count_classes(train: Features) -> int:
    """How many outputs a classifier of these labels needs."""
    return train.labels.shape[1] if train.multilabel else max(len(train.classes or ()), int(train.labels.max()) + 1)


def alike(train: Features, test: Features) -> tuple[Features, Features]:
    """Where samples of either side may have several labels, both as tables of 0 and 1 with columns for all classes."""
    if not (train.multilabel or test.multilabel):
        return train, test
    train = as_multilabel(train)
    return train, as_multilabel(test, train.labels.shape[1] if train.classes is None else 0)


def as_multilabel(one: Features, least: int = 0) -> Features:
    """The same with labels (n, classes) of 0 and 1, ``least`` classes or more."""
    known = one.has_label
    own = one.labels.shape[1] if one.multilabel else int(one.labels.max(initial=0)) + 1
    width = max(len(one.classes or ()), own, least)
    table = np.zeros((len(one), width), np.int8)
    if one.multilabel:
        table[:, : one.labels.shape[1]] = one.labels
    else:
        table[np.flatnonzero(known), one.labels[known]] = 1
    table[~known] = -1
    return replace(one, labels=table)


def match_classes(train: Features, test: Features) -> Features:
    """``test`` with the labels that ``train`` has for the same names.

    Raises :class:`MaemmError` for names that ``train`` does not know, and where only one side has names.
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
    found = np.flatnonzero((test.labels > 0).any(0)) if test.multilabel else np.unique(test.labels[test.labels >= 0])
    met = [test.classes[i] for i in found]
    unknown = [name for name in met if name not in number]
    if unknown:
        raise MaemmError(
            f"the test part has {len(unknown)} classes that the training part does not know ({_some(unknown)}; known: "
            f"{_some(list(number))}); give data with the same class names"
        )
    if test.multilabel:
        labels = np.zeros((len(test), len(train.classes)), np.int8)
        labels[:, [number[name] for name in met]] = test.labels[:, found]
        labels[~test.has_label] = -1
        return replace(test, labels=labels, classes=train.classes)
    to = np.array([number.get(name, -1) for name in test.classes] + [-1], np.int64)  # the last for "no label"
    return Features(test.x, to[test.labels], test.ids, test.skipped, test.digests, train.classes, test.valid)


def check_task(train: Features, test: Features) -> None:
    """Whether a classifier can be fitted on ``train`` and asked about ``test``, both labelled."""
    for part, one in (("training", train), ("test", test)):
        if not len(one):
            raise MaemmError(
                f"the {part} part has no labels; give all files in a folder per class, or a list or array with labels"
            )
        bad = ~np.isfinite(one.x.reshape(len(one), -1)).all(1)
        if bad.any():
            first = one.ids[int(np.flatnonzero(bad)[0])]
            raise MaemmError(
                f"{bad.sum():,} of {len(one):,} samples of the {part} part have features that are not finite (first: "
                f"{first}); check the data and the weights"
            )
    if train.x.shape[-1] != test.x.shape[-1]:
        raise MaemmError(
            f"training features are {train.x.shape[-1]} wide, test features {test.x.shape[-1]}; embed both the same way"
        )
    if train.multilabel:
        _check_several(train, test)
        return
    met = np.unique(train.labels)
    if len(met) < 2:
        name = train.classes[met[0]] if train.classes else str(met[0])
        raise MaemmError(f"all {len(train):,} training labels are {name!r}; a classifier needs two classes at least")
    unknown = np.setdiff1d(test.labels, met)
    if len(unknown) and (train.classes is None or unknown.max() >= len(train.classes)):
        raise MaemmError(
            f"the test part has {len(unknown)} classes that the training part does not know "
            f"({_some([str(one) for one in unknown])}); give data with the same labels"
        )


def _check_several(train: Features, test: Features) -> None:
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
        raise MaemmError("no sample of the test part has any of the classes; there is nothing to find")


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
