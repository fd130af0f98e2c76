"""Dimensional collapse: the singular values of features, and how many directions they really use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spectrum:
    """Singular values of centred features (n, D)."""

    values: np.ndarray  # (min(n, D),) descending
    effective_rank: float  # 0 where all features are equal
    width: int  # D
    samples: int  # n

    @property
    def limit(self) -> int:
        """The largest rank that so many centred samples can have."""
        return min(self.width, self.samples - 1)


def spectrum(x: np.ndarray) -> Spectrum:
    """(n, D) -> singular values of x minus its mean, and the effective rank.

    The effective rank is exp(-sum p log p), p the singular values divided by their sum (Roy and Vetterli 2007;
    RankMe, Garrido et al. 2023, takes the same of features that are not centred).
    """
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    # Rounding of equal features is no direction.
    noise = np.finfo(np.float32).eps * max(float(np.abs(x).max(initial=0.0)), 1e-30) * np.sqrt(x.size)
    kept = values[values > noise]
    if not len(kept):
        return Spectrum(np.zeros_like(values), 0.0, x.shape[1], len(x))
    fraction = kept / kept.sum()
    return Spectrum(values, float(np.exp(-(fraction * np.log(fraction)).sum())), x.shape[1], len(x))
