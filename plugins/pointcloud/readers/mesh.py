"""Meshes (.off, .obj, .stl, .ply with faces) with trimesh: points sampled on the surface, or the vertices."""

from __future__ import annotations

import logging
import os

import numpy as np
import trimesh

from maemm.contract.rng import Rng

from .off import read_off
from .pick import Reading

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # of missing textures
logging.getLogger("trimesh").propagate = False


def read(path: str, options: Reading, rng: Rng) -> np.ndarray:
    """(mesh_points, 3) float64, uniform over the surface; or the vertices: without faces, or ``surface: false``."""
    vertices, faces = read_off(path) if path.lower().endswith(".off") else _load(path)
    columns = options.choose_columns(("x", "y", "z"), 3)
    if not len(vertices):
        raise ValueError("no vertices")
    if options.surface is False or (options.surface is None and not len(faces)):
        return vertices[:, columns]
    if not len(faces):
        raise ValueError("the mesh has no faces, so no surface (data.source.surface)")
    return on_surface(vertices, faces, options.mesh_points, rng)[:, columns]


def on_surface(vertices: np.ndarray, faces: np.ndarray, count: int, rng: Rng) -> np.ndarray:
    """(count, 3) points, uniform over the surface of ``vertices`` (V, 3) and ``faces`` (F, 3). Raises ValueError."""
    if not np.isfinite(vertices).all():
        raise ValueError(f"{int((~np.isfinite(vertices)).any(1).sum())} vertices are not finite numbers")
    if not len(vertices) > faces.max():
        raise ValueError("a face has a vertex that does not exist")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if not mesh.area > 0:
        raise ValueError("the surface has no area")
    points, _ = trimesh.sample.sample_surface(mesh, count, seed=rng.seed("surface") % 2**32)
    return np.asarray(points)


def _load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3)."""
    kind = os.path.splitext(path)[1].lower().lstrip(".")
    if kind not in ("obj", "stl", "ply"):
        raise ValueError(f"unknown format of mesh (.{kind})")
    try:
        with open(path, "rb") as file:
            mesh = trimesh.load(file, file_type=kind, process=False, skip_materials=True)
        mesh = mesh.to_mesh() if isinstance(mesh, trimesh.Scene) else mesh
        vertices = np.asarray(getattr(mesh, "vertices", ()), np.float64).reshape(-1, 3)
        return vertices, np.asarray(getattr(mesh, "faces", ()), np.int64).reshape(-1, 3)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # trimesh's readers raise many types for broken files
        raise ValueError(f"trimesh cannot read it ({' '.join(str(error).split())})") from None
