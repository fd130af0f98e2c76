"""Pictures of point clouds, seen from the front, slightly right and above; far points are small and pale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.data.encodable import encodable

TURN, TILT = math.radians(-32), math.radians(22)  # of the view: about the upward axis, then towards the viewer
_DISTANCE = 4.0  # of the eye, in radii
_LARGEST = 1e15  # a coordinate whose square is finite in float32
_FAR = 0.62  # fraction of white in the colour of the farthest points


def plot(axes: Any, signal: Tensor, up: str = "y") -> None:
    """Draw one cloud (P, 3 + F) on a matplotlib ``Axes``, coloured by height; rows with NaN are left out."""
    points = upright(signal.detach().float().cpu().numpy()[:, :3], up)
    dot = _dot(axes, len(points))  # with hidden points, so that all pictures of a cloud have equal dots
    points = drawable(points[~np.isnan(points).any(1)])
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    if not len(points):
        return
    points = fitted(points)
    across, upward, depth = seen_from(points, TURN, TILT)
    order = np.argsort(depth, kind="stable")  # far ones first
    near = 1 / (1 - depth / _DISTANCE)
    colour = _colours(points[:, 1], depth)
    axes.scatter(
        (across * near)[order], (upward * near)[order], s=(dot * near)[order] ** 2, c=colour[order], linewidths=0
    )


def drawable(points: np.ndarray) -> np.ndarray:
    """(P, 3) without infinity: what a model that has diverged predicts lies far outside instead."""
    return encodable(torch.from_numpy(points), -_LARGEST, _LARGEST, math.nan).numpy()


def _dot(axes: Any, count: int) -> float:
    """Diameter of a dot in typographic points: proportional to the picture, smaller for more points."""
    side = min(axes.get_window_extent().width, axes.get_window_extent().height) * 72 / axes.figure.dpi
    return 0.021 * side * (1000 / max(count, 300)) ** 0.3


def upright(points: np.ndarray, up: str) -> np.ndarray:
    """(P, 3) with the upward axis second."""
    return points if up == "y" else points[:, [1, 2, 0]]


def fitted(points: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Move and scale points (P, 3) so that those of ``reference`` (default: they) fill the unit sphere.

    Unchanged if the reference is normalised: nine of ten points within 1.3 of the origin, so that a few outliers among
    the predictions change nothing.
    """
    reference = points if reference is None or not len(reference) else reference
    if np.quantile(np.linalg.norm(reference, axis=1), 0.9) <= 1.3:
        return points
    low, high = reference.min(0), reference.max(0)
    return (points - (low + high) / 2) / max(float(np.linalg.norm(high - low)) / 2, 1e-30)


def seen_from(points: np.ndarray, turn: float, tilt: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P, 3), y up -> coordinates to the right, upwards and towards the viewer, (P,) each."""
    x, y, z = points.T
    c, s = math.cos(turn), math.sin(turn)
    x, z = c * x + s * z, c * z - s * x
    c, s = math.cos(tilt), math.sin(tilt)
    return x, c * y - s * z, c * z + s * y


def _colours(height: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(P, 3) RGB: viridis by height, mixed with white by distance."""
    from matplotlib import colormaps

    colour = colormaps["viridis"](np.clip(0.45 + 0.42 * height, 0.02, 0.85))[:, :3]
    low, high = depth.min(), depth.max()
    pale = _FAR * ((high - depth) / max(high - low, 1e-9))[:, None]
    return colour * (1 - pale) + pale
