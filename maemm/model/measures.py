"""Measures of features: how many directions they use, and how they lie on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PAIRED = 4096  # samples, at most, of which all pairs are compared


# ------------------------------------------------------------------------------------------------ rank
@dataclass(frozen=True)
class Spectrum:
    """Singular values of centred features (n, D): few large ones are dimensional collapse."""

    values: np.ndarray  # (min(n, D),) descending
    effective_rank: float  # 0 where all features are equal
    width: int  # D
    samples: int  # n

    @property
    def limit(self) -> int:
        """The largest rank that n centred samples can have."""
        return min(self.width, self.samples - 1)


def spectrum(x: np.ndarray) -> Spectrum:
    """Features (n, D) -> singular values of x minus its mean, and their effective rank.

    The effective rank is exp(-sum p log p), p the singular values divided by their sum (Roy and Vetterli 2007);
    RankMe (Garrido et al. 2023) is the same of features that are not centred.
    """
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    # What rounding leaves of equal features is not a direction.
    noise = np.finfo(np.float32).eps * max(float(np.abs(x).max(initial=0.0)), 1e-30) * np.sqrt(x.size)
    nonzero = values[values > noise]
    if not len(nonzero):
        return Spectrum(np.zeros_like(values), 0.0, x.shape[1], len(x))
    p = nonzero / nonzero.sum()
    return Spectrum(values, float(np.exp(-(p * np.log(p)).sum())), x.shape[1], len(x))


# ------------------------------------------------------------------------------------------------ unit sphere
@dataclass(frozen=True)
class Sphere:
    """Features on the unit sphere (Wang and Isola 2020). NaN where a feature is zero or there are no pairs."""

    uniformity: float  # log mean exp(-2 |x - y|^2) over pairs of samples; 0: all equal, about -4: evenly distributed
    alignment: float  # mean |f(a) - f(b)|^2 over two views of a sample; 0: equal
    sample_distance: float  # mean |x - y|^2 over pairs of samples, to compare the alignment with

    @property
    def relative_alignment(self) -> float:
        """``alignment / sample_distance``: 0 is best, 1: views of one sample are as far apart as two samples."""
        return self.alignment / self.sample_distance if self.sample_distance > 1e-12 else float("nan")


def sphere(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> Sphere:
    """x (n, D): features of samples; ``first`` and ``second`` (m, D): of two views of m samples, row by row."""
    points = normalized(x[:_PAIRED])
    rows, columns = np.triu_indices(len(points), 1)
    distance = np.maximum(2 - 2 * (points @ points.T)[rows, columns], 0)  # squared, of all pairs
    alignment = float("nan")
    if len(first):
        alignment = float(np.square(normalized(first) - normalized(second)).sum(1).mean())
    return Sphere(float(np.log(np.exp(-2 * distance).mean())), alignment, float(distance.mean()))


def mean_cosine(x: np.ndarray) -> float:
    """Features (n, D) -> the mean cosine between two different samples; 1 where all point the same way.

    Samples whose feature is zero are left out; NaN where fewer than two are left.
    """
    points = normalized(x)
    points = points[np.isfinite(points).all(1)]
    count = len(points)
    if count < 2:
        return float("nan")
    return float((np.square(points.sum(0)).sum() - count) / (count * (count - 1)))


def normalized(x: np.ndarray) -> np.ndarray:
    """Rows divided by their length, in float64; NaN where that is 0."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, length, out=np.full_like(x, np.nan), where=length > 0)
