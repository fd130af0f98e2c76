"""Labels: one for each sample, or any number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng

NONE, FILL = -2, -1  # in a table of several labels: a sample of which nothing is known; behind the last label


# ------------------------------------------------------------------------------------------------- in batches
def stack(labels: Sequence[Label | None]) -> Tensor | None:
    """Labels of a batch: (B,) int64, -1 for none. Where samples have several: (B, L), filled with -1 behind the last,
    and with -2 where a sample has no labels at all. None: no sample has one."""
    if all(one is None for one in labels):
        return None
    if not any(isinstance(one, tuple) for one in labels):
        return torch.tensor([-1 if one is None else one for one in labels])
    rows = [one if isinstance(one, tuple) or one is None else (one,) for one in labels]
    width = max(1, *(len(one or ()) for one in rows))
    found = torch.full((len(rows), width), FILL)
    for place, one in zip(found, rows, strict=True):
        if one is None:
            place.fill_(NONE)
        else:
            place[: len(one)] = torch.tensor(one, dtype=torch.int64)
    return found


def known(labels: Tensor) -> Tensor:
    """(B,) bool: which samples of :func:`stack` have labels; those with an empty list have."""
    return labels >= 0 if labels.ndim == 1 else labels[:, 0] != NONE


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) or (B, L) labels of :func:`stack`, below ``classes`` -> (B, classes) float32 of 0 and 1."""
    rows = labels[:, None] if labels.ndim == 1 else labels
    found = torch.zeros(len(rows), classes + 1, device=labels.device)
    found.scatter_(1, torch.where(rows >= 0, rows, classes), 1.0)  # what is no label goes into a column of its own
    return found[:, :classes]


# ------------------------------------------------------------------------------------------- of a whole source
class LabelTable:
    """Labels of many samples in arrays, which worker processes share."""

    def __init__(self, labels: Sequence[Label | None]):
        self.multilabel = any(isinstance(one, tuple) for one in labels)
        if not self.multilabel:
            self._flat = np.array([-1 if one is None else one for one in labels], np.int64)
            return
        rows = [() if one is None else one if isinstance(one, tuple) else (one,) for one in labels]
        self._flat = np.array([one for row in rows for one in row], np.int64)
        self._ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self._none = np.array([one is None for one in labels], bool)

    def __getitem__(self, index: int) -> Label | None:
        if not self.multilabel:
            label = int(self._flat[index])
            return None if label < 0 else label
        if self._none[index]:
            return None
        return tuple(self._flat[self._ends[index - 1] if index else 0 : self._ends[index]].tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All there is, for fingerprints."""
        return (self._flat, self._ends, self._none) if self.multilabel else (self._flat,)


def label_at(labels: np.ndarray | None, index: int) -> Label | None:
    """The label in an array (n,), negative for none, or those in a row of (n, classes) of 0 and 1."""
    if labels is None:
        return None
    if labels.ndim == 2:
        return tuple(np.flatnonzero(labels[index]).tolist())
    label = int(labels[index])
    return None if label < 0 else label


class Labelled(Source):
    """``source`` with labels numbered as in ``classes``: names in their order, or how many numbers there are.

    A sample without a label, or with one that is not among them, is unreadable: it is counted, named and replaced as
    a broken file is. Raises :class:`MaemmError` where names are asked for and the source has none.
    """

    def __init__(self, source: Source, classes: Sequence[str] | int):
        self.source, self.multilabel, self.tta_views = source, source.multilabel, source.tta_views
        count = classes if isinstance(classes, int) else len(classes)
        least = 1 if source.multilabel else 2
        if count < least:
            raise MaemmError(f"{count} class is nothing to tell apart (data.classes); a classifier needs two at least")
        if not isinstance(classes, int) and source.classes is None:
            raise MaemmError(
                f"the labels are numbers without names, so data.classes cannot name them; set data.classes={count}"
            )
        self.count = count
        self.classes = source.classes if isinstance(classes, int) else list(classes)
        self._number = None if isinstance(classes, int) else {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        return self._numbered(self.source.read(index, rng))

    def tta_view(self, index: int, number: int) -> Sample:
        return self._numbered(self.source.tta_view(index, number))

    def label(self, index: int) -> Label | None:
        """None where the label is none that is known, too."""
        try:
            return self._new(self.source.label(index))
        except ValueError:
            return None

    def _numbered(self, sample: Sample) -> Sample:
        return replace(sample, label=self._new(sample.label))

    def _new(self, label: Label | None) -> Label:
        if isinstance(label, tuple):
            return tuple(self._one(one) for one in label)
        if label is None or label < 0:
            raise ValueError("it has no label")
        return self._one(label)

    def _one(self, label: int) -> int:
        if self._number is not None:
            name = self.source.classes[label]
            label = self._number.get(name, -1)
            if label < 0:
                raise ValueError(f"its class {name!r} is none of the {self.count} in data.classes")
        elif label >= self.count:
            raise ValueError(f"its label is {label}, the {self.count} labels of data.classes count from 0")
        return label

    def fingerprint(self) -> str:
        known = self.count if self._number is None else ",".join(self.classes)
        return f"{self.source.fingerprint()}:{known}"
