"""Folds for cross-validation: each part of a source is the test set once, the others are the training set."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.shots import has_label, labels_of
from maemm.data.subset import Subset

Rows = tuple[np.ndarray, np.ndarray]  # indices of the training part and the test part

_DEFAULT_FOLDS, _MAX_FOLDS = 5, 10  # without groups; with groups, which are then one fold each


def split_folds(labels: np.ndarray, count: int, *, seed: int = 0, groups: np.ndarray | None = None) -> list[Rows]:
    """(training rows, test rows) of ``count`` shuffled folds of labels (n,) or (n, classes).

    Folds are stratified by class; with several labels per sample they are plain folds. Samples of one group, ``groups``
    (n,) int64, stay together. Raises :class:`MaemmError` where there are fewer samples, or groups, than folds, or where
    no class has as many samples as there are folds.
    """
    if count < 2:
        raise MaemmError(f"{count} folds leave no test part (--folds); give 2 or more")
    units = len(labels) if groups is None else len(np.unique(groups))
    unit = "labelled samples" if groups is None else "groups"
    stratified = groups is None and labels.ndim == 1  # several labels per sample cannot be
    most = int(np.bincount(labels).max()) if stratified and len(labels) else units
    if units < count:
        raise MaemmError(f"{units} {unit} do not make {count} folds (--folds); {_fewer(most)}")
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold  # takes a second

    rows = np.arange(len(labels))
    if groups is not None:
        return list(GroupKFold(count, shuffle=True, random_state=seed).split(rows, groups=groups))
    if not stratified:
        return list(KFold(count, shuffle=True, random_state=seed).split(rows))
    if most < count:
        raise MaemmError(f"no class has {count} samples, so it cannot be in {count} folds (--folds); {_fewer(most)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it is missing in some folds
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, labels))


def _fewer(most: int) -> str:
    """What to do where at most ``most`` folds can be made; one fold is none."""
    return f"use {most} folds at most" if most > 1 else "give a test part (--test), or more labelled samples"


def groups_of(ids: list[str], pattern: str) -> np.ndarray:
    """(n,) int64: the group of each sample. Ids where ``pattern`` (its first group, or the whole match) finds the same
    text are one group.

    Raises :class:`MaemmError` for an invalid regular expression, and for ids that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise MaemmError(f"--groups is not a regular expression ({pattern}: {error}); fix it") from None
    matches = [compiled.search(id) for id in ids]
    unmatched = [id for id, match in zip(ids, matches, strict=True) if match is None]
    if unmatched:
        raise MaemmError(
            f"--groups {pattern!r} matches {len(ids) - len(unmatched):,} of {len(ids):,} ids (not: {unmatched[0]}); "
            "fix it"
        )
    texts = [match.group(1 if compiled.groups else 0) for match in matches if match is not None]
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def usual_count(groups: np.ndarray | None) -> int:
    """The default number of folds: 5, or one for each group, up to 10."""
    return _DEFAULT_FOLDS if groups is None else min(_MAX_FOLDS, len(np.unique(groups)))


@dataclass(frozen=True)
class Fold:
    """One fold of a source: ``data.fold`` and ``data.groups`` of a recipe."""

    number: int  # from 1
    count: int
    groups: str | None = None

    @classmethod
    def parse(cls, text: str, groups: str | None = None) -> Fold:
        """Read "2/5"; raises :class:`MaemmError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise MaemmError(f"fold {text!r} is not valid (data.fold); give its number and their count, such as 1/5")
        return cls(int(match[1]), int(match[2]), groups)

    def split(self, source: Source, seed: int) -> tuple[Source, Source]:
        """(training set, test set): together all samples with a label."""
        labels = labels_of(source)
        labelled = np.flatnonzero(has_label(labels))
        if not len(labelled):
            raise MaemmError("samples have no labels to make folds of (data.fold); give data with labels")
        groups = None if self.groups is None else groups_of([source.name(int(row)) for row in labelled], self.groups)
        train, test = split_folds(labels[labelled], self.count, seed=seed, groups=groups)[self.number - 1]
        return Subset(source, labelled[train]), Subset(source, labelled[test])
