"""Folds: parts of a source, each of which is asked once while the others are learned from."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.shots import has_label, labels_of
from maemm.data.subset import Subset

Rows = tuple[np.ndarray, np.ndarray]  # indices of the training part and of the test part

_FOLDS, _MOST = 5, 10  # where nothing is said; the most groups that are folds of their own then


def split_folds(labels: np.ndarray, count: int, *, seed: int = 0, groups: np.ndarray | None = None) -> list[Rows]:
    """``count`` folds of labels (n,) or (n, classes), with like shares of every class.

    ``groups`` (n,) int64 are never torn apart. Raises :class:`MaemmError` where there are fewer samples, or groups,
    than folds, or where no class has as many samples as there are folds.
    """
    if count < 2:
        raise MaemmError(f"{count} folds make no test part (--folds); give 2 or more")
    units = len(labels) if groups is None else len(np.unique(groups))
    what = "labelled samples" if groups is None else "groups"
    if units < count:
        raise MaemmError(f"{units} {what} do not make {count} folds (--folds); use {max(units, 2)} folds at most")
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    rows = np.arange(len(labels))
    if groups is not None:
        split = GroupKFold(count, shuffle=True, random_state=seed).split(rows, groups=groups)
        return [(np.asarray(a), np.asarray(b)) for a, b in split]
    if labels.ndim == 2:  # several labels of a sample cannot be shared out evenly
        split = KFold(count, shuffle=True, random_state=seed).split(rows)
        return [(np.asarray(a), np.asarray(b)) for a, b in split]
    most = int(np.bincount(labels).max())
    if most < count:
        raise MaemmError(f"no class has {count} samples, so {count} folds cannot share them; use {most} folds at most")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it misses in some folds
        split = StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, labels)
        return [(np.asarray(a), np.asarray(b)) for a, b in split]


def groups_of(ids: list[str], pattern: str) -> np.ndarray:
    """(n,) int64: samples whose ids give the same text for ``pattern`` (its first group, or all it matches).

    Raises :class:`MaemmError` for a pattern that is none, and for ids that it does not fit.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise MaemmError(f"--groups is no regular expression ({pattern}: {error})") from None
    found = [compiled.search(one) for one in ids]
    missed = [one for one, match in zip(ids, found, strict=True) if match is None]
    if missed:
        raise MaemmError(
            f"--groups {pattern!r} fits {len(ids) - len(missed):,} of {len(ids):,} ids (not: {missed[0]}); fix it"
        )
    texts = [match.group(1) if compiled.groups else match.group(0) for match in found]
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def usual_count(groups: np.ndarray | None) -> int:
    """How many folds there are where nobody says: 5, or one for each group, up to 10."""
    return _FOLDS if groups is None else min(_MOST, len(np.unique(groups)))


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
            raise MaemmError(f"fold {text!r} means nothing (data.fold); give its number and their count, such as 1/5")
        return cls(int(match[1]), int(match[2]), groups)

    def split(self, source: Source, seed: int) -> tuple[Source, Source]:
        """(what is learned from, what is asked): all samples with a label are in one of them."""
        labels = labels_of(source)
        known = np.flatnonzero(has_label(labels))
        if not len(known):
            raise MaemmError("samples have no labels to make folds of (data.fold); give data with labels")
        groups = self.groups and groups_of([source.name(int(row)) for row in known], self.groups)
        learned, asked = split_folds(labels[known], self.count, seed=seed, groups=groups)[self.number - 1]
        return Subset(source, known[learned]), Subset(source, known[asked])
