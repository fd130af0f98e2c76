"""Labels: one class per sample, or any number of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng

NONE, FILL = -2, -1  # in a table of several labels: a sample without labels; what fills a row behind the last label


# ------------------------------------------------------------------------------------------------- in batches
def stack(labels: Sequence[Label | None]) -> Tensor | None:
    """Labels of a batch: (B,) int64, -1 for none. Where samples have several: (B, L), filled with -1 behind the last,
    and with -2 where a sample has no labels at all. None: no sample has a label."""
    if all(label is None for label in labels):
        return None
    if not any(isinstance(label, tuple) for label in labels):
        return torch.tensor([-1 if label is None else label for label in labels])
    rows = [_as_tuple(label) for label in labels]
    table = torch.full((len(rows), max(1, *(len(row or ()) for row in rows))), FILL)
    for target, row in zip(table, rows, strict=True):
        if row is None:
            target.fill_(NONE)
        else:
            target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return table


def labelled(labels: Tensor) -> Tensor:
    """(B,) bool: which samples of :func:`stack` have labels, also an empty list of them."""
    return labels >= 0 if labels.ndim == 1 else labels[:, 0] != NONE


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) or (B, L) labels of :func:`stack`, all below ``classes`` -> (B, classes) float32 of 0 and 1."""
    rows = labels[:, None] if labels.ndim == 1 else labels
    hot = torch.zeros(len(rows), classes + 1, device=labels.device)
    hot.scatter_(1, torch.where(rows >= 0, rows, classes), 1.0)  # the last column is for what is not a label
    return hot[:, :classes]


def _as_tuple(label: Label | None) -> tuple[int, ...] | None:
    return label if label is None or isinstance(label, tuple) else (label,)


# ------------------------------------------------------------------------------------------- of a whole source
class LabelTable:
    """Labels of many samples in arrays, which worker processes share without copying."""

    def __init__(self, labels: Sequence[Label | None]):
        self.multilabel = any(isinstance(label, tuple) for label in labels)
        if not self.multilabel:
            self._flat = np.array([-1 if label is None else label for label in labels], np.int64)
            return
        rows = [_as_tuple(label) or () for label in labels]
        self._flat = np.array([label for row in rows for label in row], np.int64)
        self._ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self._none = np.array([label is None for label in labels], bool)

    def __getitem__(self, index: int) -> Label | None:
        if not self.multilabel:
            label = int(self._flat[index])
            return None if label < 0 else label
        if self._none[index]:
            return None
        return tuple(self._flat[self._ends[index - 1] if index else 0 : self._ends[index]].tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays of the table, for fingerprints."""
        return (self._flat, self._ends, self._none) if self.multilabel else (self._flat,)


def label_at(labels: np.ndarray | None, index: int) -> Label | None:
    """The label in an array (n,), negative for none, or the labels in a row of (n, classes) of 0 and 1."""
    if labels is None:
        return None
    if labels.ndim == 2:
        return tuple(np.flatnonzero(labels[index]).tolist())
    label = int(labels[index])
    return None if label < 0 else label


class Labelled(Source):
    """``source`` with labels numbered as in ``classes``: class names in their order, or the number of classes.

    A sample without a label, or with one that is not in ``classes``, is unreadable: it is counted, logged and replaced
    like a broken file. Raises :class:`MaemmError` where ``classes`` are names and the source has none.
    """

    _number: dict[str, int] | None = None  # {class name: its new label}; None: labels stay as they are

    def __init__(self, source: Source, classes: Sequence[str] | int):
        self.source, self.multilabel, self.tta_views = source, source.multilabel, source.tta_views
        self.count = classes if isinstance(classes, int) else len(classes)
        if self.count < (1 if source.multilabel else 2):
            raise MaemmError(f"{self.count} class is too few (data.classes); a classifier needs at least two")
        if isinstance(classes, int):
            self.classes = source.classes
            return
        if source.classes is None:
            raise MaemmError(
                f"the labels are numbers without names, so data.classes cannot be names; set data.classes={self.count}"
            )
        self.classes = list(classes)
        self._number = {name: i for i, name in enumerate(classes)}
        self._source_classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        return self._renumbered(self.source.read(index, rng))

    def read_ahead(self, indices: Sequence[int]) -> None:
        self.source.read_ahead(indices)

    def paths(self, index: int) -> Mapping[str, str | os.PathLike[str]] | None:
        return self.source.paths(index)

    @property
    def shard_sizes(self) -> np.ndarray | None:
        return self.source.shard_sizes

    def tta_view(self, index: int, number: int) -> Sample:
        return self._renumbered(self.source.tta_view(index, number))

    def label(self, index: int) -> Label | None:
        """None also where the label is not in ``classes``."""
        try:
            return self._new_label(self.source.label(index))
        except ValueError:
            return None

    def _renumbered(self, sample: Sample) -> Sample:
        return replace(sample, label=self._new_label(sample.label))

    def _new_label(self, label: Label | None) -> Label:
        if isinstance(label, tuple):
            return tuple(self._new_number(number) for number in label)
        if label is None or label < 0:
            raise ValueError("it has no label")
        return self._new_number(label)

    def _new_number(self, label: int) -> int:
        if self._number is None:
            if label >= self.count:
                raise ValueError(f"its label is {label}, the {self.count} labels of data.classes count from 0")
            return label
        name = self._source_classes[label]
        if name not in self._number:
            raise ValueError(f"its class {name!r} is none of the {self.count} in data.classes")
        return self._number[name]

    def fingerprint(self) -> str:
        classes = self.count if self._number is None else ",".join(self.classes or ())
        return f"{self.source.fingerprint()}:{classes}"
