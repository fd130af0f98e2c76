"""Which samples are learned from and which are asked: folds, groups, few labels; and samples on both sides."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np

from maemm.data.shots import Shots
from maemm.errors import MaemmError
from maemm.evaluate.features import Features

__all__ = ["Overlap", "Shots", "copies", "folds", "groups_of", "overlap"]

Rows = tuple[np.ndarray, np.ndarray]  # indices of the training part and of the test part


def folds(data: Features, count: int, *, seed: int = 0, groups: np.ndarray | None = None) -> list[Rows]:
    """``count`` folds with like shares of every class; ``groups`` (n,) int64 are never torn apart.

    Every sample of ``data`` must have a label. Raises :class:`MaemmError` where there are fewer samples, or groups,
    than folds, or where no class has as many samples as there are folds.
    """
    if count < 2:
        raise MaemmError(f"{count} folds make no test part (--folds); give 2 or more")
    units = len(data) if groups is None else len(np.unique(groups))
    what = "labelled samples" if groups is None else "groups"
    if units < count:
        raise MaemmError(f"{units} {what} do not make {count} folds (--folds); use {max(units, 2)} folds at most")
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    if data.several and groups is None:  # several labels of a sample cannot be shared out evenly
        split = KFold(count, shuffle=True, random_state=seed).split(data.x)
        return [(np.asarray(a), np.asarray(b)) for a, b in split]
    if groups is not None:
        split = GroupKFold(count, shuffle=True, random_state=seed).split(data.x, groups=groups)
        return [(np.asarray(a), np.asarray(b)) for a, b in split]
    most = int(np.bincount(data.labels).max())
    if most < count:
        raise MaemmError(f"no class has {count} samples, so {count} folds cannot share them; use {most} folds at most")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it misses in some folds
        split = StratifiedKFold(count, shuffle=True, random_state=seed).split(data.x, data.labels)
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
            f"--groups {pattern!r} fits {len(ids) - len(missed):,} of {len(ids):,} ids (not: {missed[0]}); mend it"
        )
    texts = [match.group(1) if compiled.groups else match.group(0) for match in found]
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


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
            "them its id too): the figures are too good by what was learned by heart"
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
