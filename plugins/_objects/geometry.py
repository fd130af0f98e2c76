"""Every shape as a mesh of small quadrilaterals that fits the unit sphere: for pictures, clips and point sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from .objects import SHAPES


@dataclass(frozen=True)
class Mesh:
    """Quadrilaterals, each with its pattern coordinates; a triangle repeats a corner."""

    corners: np.ndarray  # (F, 4, 3) inside the unit sphere, counter-clockwise seen from outside
    surface: np.ndarray  # (F, 2) pattern coordinates of each face: the stripe or check changes at whole numbers


@cache
def mesh(shape: str) -> Mesh:
    """The mesh of one of ``SHAPES``."""
    builders = {
        "sphere": _sphere,
        "torus": _torus,
        "cube": _cube,
        "cylinder": lambda: _lathe([(0.0, 0.72), (0.69, 0.72), (0.69, -0.72), (0.0, -0.72)]),
        "cone": lambda: _lathe([(0.0, 0.98), (0.75, -0.65), (0.0, -0.65)]),
        "pyramid": lambda: _lathe([(0.0, 0.95), (0.85, -0.52), (0.0, -0.52)], sides=4),
    }
    assert set(builders) == set(SHAPES)
    return builders[shape]()


def on_surface(shape: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` points uniform over a shape's surface (count, 3), and the face (count,) that each lies on."""
    corners = mesh(shape).corners
    halves = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])  # a quadrilateral is two triangles
    area = np.linalg.norm(np.cross(halves[:, 1] - halves[:, 0], halves[:, 2] - halves[:, 0]), axis=1)
    half = rng.choice(len(halves), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)  # folded back into the triangle
    a, b, c = halves[half].swapaxes(0, 1)
    return a + u * (b - a) + v * (c - a), half % len(corners)


def rotation_matrix(turn: float, tilt: float, roll: float) -> np.ndarray:
    """(3, 3): turn about y, then tilt about x, then roll about z."""
    cy, sy, cx, sx, cz, sz = (f(a) for a in (turn, tilt, roll) for f in (math.cos, math.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _grid(points: np.ndarray, rows: int, columns: int, checks: tuple[float, float]) -> Mesh:
    """(rows + 1, columns + 1, 3) lattice of points -> mesh; ``checks``: pattern steps over the whole lattice."""
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2)
    r, c = np.mgrid[0:rows, 0:columns]
    surface = np.stack([(r + 0.5) / rows * checks[0], (c + 0.5) / columns * checks[1]], axis=-1)
    return Mesh(corners.reshape(-1, 4, 3), surface.reshape(-1, 2))


def _join(*parts: Mesh) -> Mesh:
    return Mesh(np.concatenate([p.corners for p in parts]), np.concatenate([p.surface for p in parts]))


def _sphere(rows: int = 14, columns: int = 28) -> Mesh:
    polar, turn = np.meshgrid(
        np.linspace(0, math.pi, rows + 1), np.linspace(0, 2 * math.pi, columns + 1), indexing="ij"
    )
    points = np.stack([np.sin(polar) * np.sin(turn), np.cos(polar), np.sin(polar) * np.cos(turn)], axis=-1)
    return _grid(0.86 * points, rows, columns, (7, 14))


def _torus(rows: int = 14, columns: int = 28, ring: float = 0.66, tube: float = 0.3) -> Mesh:
    """Stands upright like a wheel, so that its hole is seen."""
    around, turn = np.meshgrid(
        np.linspace(0, -2 * math.pi, rows + 1), np.linspace(0, 2 * math.pi, columns + 1), indexing="ij"
    )
    radius = ring + tube * np.cos(around)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn), tube * np.sin(around)], axis=-1)
    return _grid(points, rows, columns, (2, 14))


def _cube(cells: int = 6, half: float = 0.57) -> Mesh:
    a, b = np.meshgrid(np.linspace(half, -half, cells + 1), np.linspace(-half, half, cells + 1), indexing="ij")
    front = np.stack([b, a, np.full_like(a, half)], axis=-1)
    quarter, flat = rotation_matrix(math.pi / 2, 0, 0), rotation_matrix(0, math.pi / 2, 0)
    turns = [np.linalg.matrix_power(quarter, k) for k in range(4)] + [flat, flat.T]
    return _join(*(_grid(front @ turn.T, cells, cells, (4, 4)) for turn in turns))


def _lathe(profile: list[tuple[float, float]], sides: int = 28) -> Mesh:
    """A profile of (radius, height), top to bottom, turned about y; four sides give flat faces."""
    columns = sides * max(1, 28 // sides)
    turn = np.linspace(0, 2 * math.pi, columns + 1)
    # Points on the chord of a side, not on the circle: the same for a round body, flat faces for a pyramid.
    corner = np.linspace(0, 2 * math.pi, sides + 1)
    ring = np.stack([np.interp(turn, corner, np.sin(corner)), np.interp(turn, corner, np.cos(corner))], axis=-1)
    parts = []
    for (r0, y0), (r1, y1) in zip(profile[:-1], profile[1:], strict=True):
        rows = max(2, round(math.hypot(r1 - r0, y1 - y0) / 0.16))
        radius, height = np.linspace(r0, r1, rows + 1), np.linspace(y0, y1, rows + 1)
        x, z = radius[:, None] * ring[None, :, 0], radius[:, None] * ring[None, :, 1]
        points = np.stack([x, np.broadcast_to(height[:, None], x.shape), z], axis=-1)
        steps = max(1, round(math.hypot(r1 - r0, y1 - y0) / 0.29))
        parts.append(_grid(points, rows, columns, (steps, 14 if sides > 4 else 12)))
    return _join(*parts)
