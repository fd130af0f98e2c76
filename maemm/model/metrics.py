"""Average precision of scores, for samples that may have several labels."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n, C) scores and labels of 0 or 1 -> (C,) float64: scikit-learn's ``average_precision_score`` of each class.

    NaN for classes without a positive, where scikit-learn has 0. NaN among the scores ranks last, where it refuses.
    """
    from sklearn.metrics import average_precision_score  # takes a second

    scores = np.nan_to_num(scores.astype(np.float64), nan=np.finfo(np.float64).min)
    result = np.full(scores.shape[1], np.nan)
    for i in np.flatnonzero(truth.sum(0)):
        result[i] = average_precision_score(truth[:, i], scores[:, i])
    return result


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the classes that have a positive (mAP); NaN where none has."""
    per_class = average_precision(scores, truth)
    return float(np.nanmean(per_class)) if np.isfinite(per_class).any() else float("nan")
