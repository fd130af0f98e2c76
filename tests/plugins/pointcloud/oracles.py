"""Grouping in plain NumPy, point by point: what every other implementation must equal index for index."""

import numpy as np


def squares(a, b):
    """Squared distances (N, 3), (3,) -> (N,), summed (x + y) + z in float32."""
    d = (a - b) ** 2
    return (d[:, 0] + d[:, 1]) + d[:, 2]


def farthest(points, count, valid=None, skip_origin=False):
    """(N, 3) float32 -> (count,) indices: the lowest index wins ties, index 0 where there is no candidate."""
    can = np.ones(len(points), bool) if valid is None else valid.copy()
    chosen = [int(np.flatnonzero(can)[0]) if can.any() else 0]
    if skip_origin:
        can &= squares(points, np.zeros(3, np.float32)) > np.float32(1e-3)
    nearest = np.full(len(points), np.inf, np.float32)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, squares(points, points[chosen[-1]]))
        best, at = -1.0, 0
        for index in np.flatnonzero(can):
            if nearest[index] > best:
                best, at = nearest[index], index
        chosen.append(int(at))
    return np.array(chosen)


def nearest(points, center, count, valid=None):
    """(N, 3), (3,) -> (count,) indices in ascending distance, the lowest index first among equals."""
    distance = squares(points, center)
    order = sorted(range(len(points)), key=lambda i: (distance[i], i))
    order = [i for i in order if valid is None or valid[i]][:count]
    return np.array(order + order[:1] * (count - len(order)))
