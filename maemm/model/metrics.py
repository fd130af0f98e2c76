"""Average precision of scores, for samples that may have several labels."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n, C) scores and 0 or 1 -> (C,) float64: precision at each positive, averaged over the positives of the class.

    As scikit-learn's ``average_precision_score``: equal scores stand together. NaN for classes without a positive.
    """
    found = np.full(scores.shape[1], np.nan)
    for place, (said, true) in enumerate(zip(scores.T, truth.T, strict=True)):
        positives = int(true.sum())
        if not positives:
            continue
        order = np.argsort(-said, kind="stable")
        last = np.append(np.diff(said[order]) != 0, True)  # the last of each group of equal scores
        right = np.cumsum(true[order])[last]
        gained = np.diff(right, prepend=0)
        found[place] = float((gained * right / (np.flatnonzero(last) + 1)).sum() / positives)
    return found


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the classes that have a positive (mAP); NaN where none has."""
    each = average_precision(scores, truth)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
