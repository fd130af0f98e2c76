"""Samples with the same content: in the training and the test part, or twice in one data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maemm.tasks._shared.features import Features


@dataclass(frozen=True)
class Overlap:
    """Test samples that are training samples too."""

    content: int  # with the content of a training sample
    ids: int  # of those, with the id of a training sample too
    same_name: int  # with the id of a training sample, whatever the content: numbered files often share names
    total: int  # test samples

    def __str__(self) -> str:
        return (
            f"{self.content:,} of {self.total:,} test samples have the content of a training sample ({self.ids:,} of "
            "them its id too): the metrics are inflated by train/test overlap"
        )


def overlap(train: Features, test: Features) -> Overlap:
    """Samples in both, by digest of the content and by id."""
    train_ids = set(train.ids)
    same_id = np.array([id in train_ids for id in test.ids], bool)
    same_content = np.zeros(len(test), bool)
    if train.digests is not None and test.digests is not None:
        same_content = np.isin(test.digests, train.digests)
    return Overlap(int(same_content.sum()), int((same_content & same_id).sum()), int(same_id.sum()), len(test))


def copies(data: Features) -> int:
    """How many samples have the content of an earlier one: folds may hold such a pair on both sides."""
    return 0 if data.digests is None else len(data) - len(np.unique(data.digests))
