"""Which samples are learned from and which are asked: folds, groups, few labels; and samples on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maemm.data.folds import Rows, groups_of, split_folds, usual_count
from maemm.data.shots import Shots
from maemm.tasks._shared.features import Features

__all__ = ["Overlap", "Shots", "copies", "folds", "groups_of", "overlap", "usual_count"]


def folds(data: Features, count: int, *, seed: int = 0, groups: np.ndarray | None = None) -> list[Rows]:
    """:func:`maemm.data.folds.split_folds` of features that all have a label."""
    return split_folds(data.labels, count, seed=seed, groups=groups)


@dataclass(frozen=True)
class Overlap:
    """Test samples that are training samples too."""

    content: int  # with content that the training part holds too
    ids: int  # of those, under an id that the training part knows
    same_name: int  # ids known to the training part, whatever the content: numbered files often share names
    total: int  # test samples

    def __str__(self) -> str:
        return (
            f"{self.content:,} of {self.total:,} test samples have the content of a training sample ({self.ids:,} of "
            "them its id too): the metrics are inflated by train/test overlap"
        )


def overlap(train: Features, test: Features) -> Overlap:
    """Samples in both, by what was loaded and by id."""
    known = set(train.ids)
    named = np.array([one in known for one in test.ids], bool)
    same = np.zeros(len(test), bool)
    if train.digests is not None and test.digests is not None:
        same = np.isin(test.digests, train.digests)
    return Overlap(int(same.sum()), int((same & named).sum()), int(named.sum()), len(test))


def copies(data: Features) -> int:
    """How many samples have the content of an earlier one: folds may tear such pairs apart."""
    return 0 if data.digests is None else len(data) - len(np.unique(data.digests))
