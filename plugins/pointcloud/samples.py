"""The point cloud sample set: surfaces of procedural objects as PLY files in one folder per shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt

from .._objects.geometry import mesh, on_surface, rotation_matrix
from .._objects.objects import COLOURS, COUNT, SHAPES, Object, make_objects
from .._objects.render import pattern
from .._objects.store import write_once
from .sources import open_pointclouds

HOME = Path("runs/samples/pointcloud")  # below the working directory, beside the runs
POINTS = 1024
VERSION = 1  # increase it whenever a point changes, so that an old folder is refused

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_HEADER = (
    "ply\nformat binary_little_endian 1.0\nelement vertex {count}\n"
    "property float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
)


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` clouds of 1,024 coloured points as ``root/SHAPE/0007.ply``; a second call does nothing.

    Objects are posed as in their pictures; y is up and the floor is y = 0. The label is the folder's name; the number
    is the object's index, the same in every modality. ``.objects.json`` holds all parameters.
    """
    description = {"kind": "pointcloud", "version": VERSION, "count": count, "seed": seed, "points": POINTS}
    write_once(root, description, lambda folder: _fill(folder, count, seed))


def open_samples(root: str | None, list: str | None = None, *, name: str = "pointcloud") -> Source:
    """For recipes that run without data: the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary source of point clouds. Raises :class:`MaemmError` as that
    does.

    Options
        name: the modality that the clouds are for
    """
    if not root and not list:
        write(HOME)
        root = str(HOME)
    return open_pointclouds(root, list, name=name)


def surface(thing: Object, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points on an object's surface (1024, 3) in scene units at time 0, and their colours (1024, 3) in 0 .. 1."""
    points, face = on_surface(thing.shape, POINTS, np.random.default_rng([seed, thing.index, 3]))
    position, rotation = thing.at(0.0)
    points = thing.size * points @ rotation_matrix(*rotation).T
    points[:, 1] -= points[:, 1].min()  # onto the floor
    shade = pattern(thing.material, mesh(thing.shape).surface[face])
    return points + np.asarray(position), shade[:, None] * np.asarray(COLOURS[thing.colour])


def _fill(folder: Path, count: int, seed: int) -> None:
    objects = make_objects(count, seed)
    for shape in SHAPES:
        (folder / shape).mkdir()
    for thing in objects:
        (folder / thing.shape / f"{thing.index:04d}.ply").write_bytes(_ply(*surface(thing, seed)))
    text = json.dumps([thing.record() for thing in objects])
    (folder / ".objects.json").write_text(text + "\n", encoding="utf-8")


def _ply(points: np.ndarray, colours: np.ndarray) -> bytes:
    vertices = np.empty(len(points), _VERTEX)
    vertices["xyz"], vertices["rgb"] = points, np.clip(colours * 255 + 0.5, 0, 255)
    return _HEADER.format(count=len(points)).encode() + vertices.tobytes()
