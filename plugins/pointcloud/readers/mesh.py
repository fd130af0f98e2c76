"""Meshes (.off, .obj, .stl, .ply with faces) through trimesh: points drawn on the surface, or its corners."""

from __future__ import annotations

import logging
import os

import numpy as np
import trimesh

from maemm.contract.rng import Rng

from .off import read_off
from .pick import Reading

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # missing texture pictures do not matter here
logging.getLogger("trimesh").propagate = False


def read(path: str, how: Reading, rng: Rng) -> np.ndarray:
    """(mesh_points, 3) float64, uniform over the surface by area; without faces, or ``surface: false``, the corners."""
    vertices, faces = read_off(path) if path.lower().endswith(".off") else _load(path)
    taken = how.pick(("x", "y", "z"), 3)
    if not len(vertices):
        raise ValueError("no vertices")
    if how.surface is False or (how.surface is None and not len(faces)):
        return vertices[:, taken]
    if not len(faces):
        raise ValueError("the mesh has no faces, so no surface (data.source.surface)")
    return on_surface(vertices, faces, how.mesh_points, rng)[:, taken]


def on_surface(vertices: np.ndarray, faces: np.ndarray, count: int, rng: Rng) -> np.ndarray:
    """(count, 3): points uniform over the surface of a mesh with ``faces`` (F, 3), chosen by ``rng``."""
    if not np.isfinite(vertices).all():
        raise ValueError(f"{int((~np.isfinite(vertices)).any(1).sum())} corners are not finite numbers")
    if not len(vertices) > faces.max():
        raise ValueError("a face has a corner outside the vertices")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if not mesh.area > 0:
        raise ValueError("the surface has no area")
    points, _ = trimesh.sample.sample_surface(mesh, count, seed=rng.seed("surface") % 2**32)
    return np.asarray(points)


def _load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(V, 3) corners and (F, 3) triangles."""
    kind = os.path.splitext(path)[1].lower().lstrip(".")
    if kind not in ("obj", "stl", "ply"):
        raise ValueError(f"no known kind of mesh (.{kind})")
    try:
        with open(path, "rb") as file:
            mesh = trimesh.load(file, file_type=kind, process=False, skip_materials=True)
        mesh = mesh.to_mesh() if isinstance(mesh, trimesh.Scene) else mesh
        return np.asarray(mesh.vertices, np.float64), np.asarray(getattr(mesh, "faces", ()), np.int64).reshape(-1, 3)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file does to trimesh's many readers
        raise ValueError(f"trimesh cannot read it ({' '.join(str(error).split())})") from None
