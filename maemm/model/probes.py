"""Quick classifiers on frozen features: nearest neighbours and ridge regression, with nothing random in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from maemm.model.metrics import mean_average_precision

FEWEST = 8  # samples with a label, below which a probe says nothing
EPS = 1e-6  # added to the standard deviation of a feature
_QUERIES = 1024  # queries that are compared with the whole gallery at a time


def neighbour_votes(
    gallery: np.ndarray, hot: np.ndarray, queries: np.ndarray, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """(q, C) fraction of the votes of the ``k`` nearest of ``gallery`` (n, D) for each of ``queries`` (q, D).

    ``hot`` (n, C): labels of 0 and 1. A neighbour of cosine similarity s weighs exp(s / temperature) (Wu et al. 2018,
    arXiv 1805.01978, section 3.4).
    """
    points, labels = _unit(gallery), torch.from_numpy(np.ascontiguousarray(hot)).float()
    k, scores = min(k, len(points)), []
    for block in _unit(queries).split(_QUERIES):
        similarity, index = (block @ points.T).topk(k)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # minus the largest: no overflow
        weight = weight / weight.sum(1, keepdim=True)
        scores.append((weight[:, None] @ labels[index]).squeeze(1))
    return torch.cat(scores).numpy()


def ridge_scores(x: np.ndarray, hot: np.ndarray, queries: np.ndarray, *, penalty: float = 1.0) -> np.ndarray:
    """(q, C) values of a linear map, fitted by least squares to the labels ``hot`` (n, C) of the features ``x`` (n, D).

    The squared weights cost ``penalty`` x n; the intercept, fitted by centring, costs nothing. With z-scored features
    a penalty of 1 is as strong as one feature's own variance. The solution is closed: (x'x + penalty n I)^-1 x'y, or
    in the span of the samples where these are fewer.
    """
    x, hot, queries = (np.asarray(part, np.float64) for part in (x, hot, queries))
    middle, shares = x.mean(0), hot.mean(0)
    x, y = x - middle, hot - shares
    cost = penalty * len(x)
    if x.shape[1] <= len(x):
        weights = np.linalg.solve(x.T @ x + cost * np.eye(x.shape[1]), x.T @ y)
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + cost * np.eye(len(x)), y)
    return (queries - middle) @ weights + shares


def two_halves(
    x: np.ndarray, hot: np.ndarray, scores: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> float | None:
    """Accuracy (of several labels for a sample: mAP) where each half of the samples is the other's test.

    ``x`` (n, D) features, z-scored with the statistics of the half that is learned from; ``hot`` (n, C) labels of 0
    and 1; ``scores(x, hot, queries)`` such as :func:`ridge_scores`. The halves are drawn, always in the
    same way, and share each class evenly. None
    where fewer than 8 samples, or fewer than two classes of two samples, can be told apart.
    """
    counts, single = hot.sum(0), bool((hot.sum(1) == 1).all())
    if len(x) < FEWEST or ((counts > 1) & (counts < len(x))).sum() < (2 if single else 1):
        return None
    half, order = np.zeros(len(x), bool), np.random.default_rng(0).permutation(len(x))
    for rows in [order[column[order] > 0] for column in hot.T] if single else [order]:
        half[rows[1::2]] = True
    answers = np.zeros(hot.shape)
    for learned in (half, ~half):
        mean, std = x[learned].mean(0), x[learned].std(0) + EPS
        answers[~learned] = scores((x[learned] - mean) / std, hot[learned], (x[~learned] - mean) / std)
    if single:
        return float((answers.argmax(1) == hot.argmax(1)).mean())
    return mean_average_precision(answers, hot)


def _unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1)
