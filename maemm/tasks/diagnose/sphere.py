"""Uniformity and alignment on the unit sphere (Wang and Isola 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROWS = 4096  # more samples are not compared with each other


@dataclass(frozen=True)
class Sphere:
    """Features on the unit sphere. NaN where a feature is zero or there are no pairs."""

    uniformity: float  # log mean exp(-2 |x - y|^2) over pairs of samples; 0: all equal, about -4: spread evenly
    alignment: float  # mean |f(a) - f(b)|^2 over two views of a sample; 0: views are the same
    apart: float  # mean |x - y|^2 over pairs of samples: what alignment is to be read beside

    @property
    def fraction(self) -> float:
        """Distance of two views as a share of the distance of two samples: 0 is best, 1 says nothing is shared."""
        return self.alignment / self.apart if self.apart > 1e-12 else float("nan")


def sphere(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> Sphere:
    """x (n, D): features of whole samples; ``first`` and ``second`` (m, D): of two views of the same m samples."""
    points = on_sphere(x[:_ROWS])
    distance = _squared_distances(points)
    pair = on_sphere(first), on_sphere(second)
    close = float(np.square(pair[0] - pair[1]).sum(1).mean()) if len(first) else float("nan")
    return Sphere(float(np.log(np.exp(-2 * distance).mean())), close, float(distance.mean()))


def on_sphere(x: np.ndarray) -> np.ndarray:
    """Rows divided by their length; NaN where that is 0."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, length, out=np.full_like(x, np.nan), where=length > 0)


def _squared_distances(points: np.ndarray) -> np.ndarray:
    """Of all pairs of different rows."""
    rows, columns = np.triu_indices(len(points), 1)
    inner = (points @ points.T)[rows, columns]
    return np.maximum(2 - 2 * inner, 0)
