"""Pictures of the sample objects: a small painter's renderer on NumPy and Pillow.

Room: the floor is y = 0, the wall stands behind it, the camera looks along -z from a little above.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .geometry import mesh, rotation_matrix
from .objects import COLOURS, MATERIALS, Object

CLASSES = ("wall", "floor", *MATERIALS)  # of the label maps; not the shape, which is what samples are to be told by

_EYE = np.array([0.0, 1.6, 4.6])  # camera
_DOWN = 0.19  # radians that it looks down
_FOCAL = 2.9  # half-widths of the picture per unit of slope
_WALL_Z = -1.6
_FINE = 3  # supersampling: drawn this many times finer, then averaged


def render(thing: Object, pixels: int = 64, time: float = 0.0) -> Image.Image:
    """An RGB picture (pixels x pixels) of the object at ``time`` seconds. The same bits for the same input."""
    fine = pixels * _FINE
    corners = _corners(thing, time)
    light = np.array([math.sin(thing.light), 1.3, math.cos(thing.light)])
    light /= np.linalg.norm(light)
    picture = _background(thing, fine)
    picture = _shadow(picture, corners, light, fine)
    _paint(ImageDraw.Draw(picture), thing, corners, light, fine)
    return picture.resize((pixels, pixels), Image.Resampling.BOX)


def render_maps(thing: Object, pixels: int = 64, time: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth and classes of every pixel of :func:`render`: (pixels, pixels) float64, distance along the view in room
    units, and uint8, of :data:`CLASSES`."""
    fine = pixels * _FINE
    corners = _corners(thing, time)
    _, _, order = _seen(corners)
    flat = _project(corners[order], fine).reshape(len(order), 8).tolist()
    on_floor, room = _room(fine)[0], _away_of_room(fine)
    depth, classes = Image.fromarray(room.astype(np.float32)), Image.fromarray(on_floor.astype(np.uint8))
    far, near = ImageDraw.Draw(depth), ImageDraw.Draw(classes)
    number = CLASSES.index(thing.material)
    for points, away in zip(flat, _away(corners[order].mean(1)).tolist(), strict=True):
        far.polygon(points, fill=away)
        near.polygon(points, fill=number)
    middle = slice(_FINE // 2, None, _FINE)  # of the fine pixels of each
    return np.asarray(depth, np.float64)[middle, middle], np.array(classes)[middle, middle]


def _corners(thing: Object, time: float) -> np.ndarray:
    """(F, 4, 3): the faces of the object where it is at ``time`` seconds."""
    position, rotation = thing.at(time)
    corners = thing.size * mesh(thing.shape).corners @ rotation_matrix(*rotation).T
    corners[..., 1] -= corners[..., 1].min()  # it stands on the floor
    corners += np.asarray(position)
    return corners


def _away(points: np.ndarray) -> np.ndarray:
    """Room points (..., 3) -> their distance from the camera along its view."""
    _, y, z = np.moveaxis(points - _EYE, -1, 0)
    return -z * math.cos(_DOWN) - y * math.sin(_DOWN)


def _away_of_room(fine: int) -> np.ndarray:
    """The same of the wall and the floor in each fine pixel."""
    on_floor, x, height, floor_x, floor_z = _room(fine)
    wall = np.stack([x, height, np.full_like(x, _WALL_Z)], -1)
    floor = np.stack([floor_x, np.zeros_like(floor_x), floor_z], -1)
    return np.where(on_floor, _away(floor), _away(wall))


def _project(points: np.ndarray, fine: int) -> np.ndarray:
    """Room points (..., 3) -> picture points (..., 2) in fine pixels."""
    c, s = math.cos(_DOWN), math.sin(_DOWN)
    x, y, z = np.moveaxis(points - _EYE, -1, 0)
    up, away = y * c - z * s, -z * c - y * s
    return np.stack([0.5 + 0.5 * _FOCAL * x / away, 0.5 - 0.5 * _FOCAL * up / away], axis=-1) * fine


def _paint(canvas: ImageDraw.ImageDraw, thing: Object, corners: np.ndarray, light: np.ndarray, fine: int) -> None:
    """Draw the faces that look at the camera, far ones first."""
    normals, gaze, order = _seen(corners)
    half = light + gaze[order]
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    diffuse = np.clip((normals[order] @ light), 0, None)[:, None]
    gloss = {"shiny": 0.75}.get(thing.material, 0.12) * np.clip((normals[order] * half).sum(1), 0, None)[:, None] ** 24
    base = np.asarray(COLOURS[thing.colour]) * pattern(thing.material, mesh(thing.shape).surface[order])[:, None]
    colours = _bytes(base * (0.34 + 0.72 * diffuse) + gloss)
    flat = _project(corners[order], fine).reshape(len(order), 8)
    for points, colour in zip(flat.tolist(), colours.tolist(), strict=True):
        canvas.polygon(points, fill=tuple(colour))


def _seen(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(normals (F, 3), directions to the camera (F, 3), the faces that look at it, far ones first)."""
    # Across the diagonals, so that a triangle (a repeated corner) has a normal too.
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    centres = corners.mean(1)
    gaze = _EYE - centres
    distance = np.linalg.norm(gaze, axis=1, keepdims=True)
    gaze = gaze / distance
    seen = np.flatnonzero((normals * gaze).sum(1) > 0)
    order = seen[np.argsort(-distance[seen, 0], kind="stable")]
    return normals, gaze, order


def pattern(material: str, surface: np.ndarray) -> np.ndarray:
    """(F, 2) pattern coordinates -> (F,) brightness."""
    a, b = np.floor(surface).T
    if material == "striped":
        return np.where(a % 2 == 0, 1.0, 0.45)
    if material == "checked":
        return np.where((a + b) % 2 == 0, 1.0, 0.5)
    return np.ones(len(surface))


def _shadow(picture: Image.Image, corners: np.ndarray, light: np.ndarray, fine: int) -> Image.Image:
    """Darken the floor in the object's shadow, with a soft edge."""
    fallen = corners - corners[..., 1:2] * (light / light[1])
    mask = Image.new("L", (fine, fine), 255)
    canvas = ImageDraw.Draw(mask)
    for points in _project(fallen, fine).reshape(len(fallen), 8).tolist():
        canvas.polygon(points, fill=140)
    mask = mask.filter(ImageFilter.BoxBlur(fine / 60))
    return ImageChops.multiply(picture, Image.merge("RGB", (mask, mask, mask)))


def _background(thing: Object, fine: int) -> Image.Image:
    """Wall and floor, each with its pattern in perspective."""
    on_floor, x, height, floor_x, floor_z = _room(fine)
    wall = _wall(thing.wall, x * thing.wall_scale, height * thing.wall_scale) * (0.82 + 0.07 * np.clip(height, 0, 2))
    shade = np.where(on_floor, _floor(thing.floor, floor_x, floor_z), wall).astype(np.float32)
    colours = 255 * np.array([thing.wall_colour, thing.floor_colour], np.float32)
    channels = [np.where(on_floor, shade * floor, shade * wall_).astype(np.uint8) for wall_, floor in colours.T]
    return Image.merge("RGB", [Image.fromarray(channel) for channel in channels])


@lru_cache(maxsize=4)
def _room(fine: int) -> tuple[np.ndarray, ...]:
    """What each fine pixel shows: (whether it is floor, x and height on the wall, x and z on the floor)."""
    c, s = math.cos(_DOWN), math.sin(_DOWN)
    v, u = np.mgrid[0:fine, 0:fine] + 0.5
    right, up = (u / fine - 0.5) * 2 / _FOCAL, (0.5 - v / fine) * 2 / _FOCAL
    ray_y, ray_z = up * c - s, -c - up * s
    reach = (_WALL_Z - _EYE[2]) / ray_z  # length of the ray up to the wall
    height = _EYE[1] + reach * ray_y
    down = -_EYE[1] / np.minimum(ray_y, -1e-3)  # length up to the floor
    return height < 0, right * reach, height, right * down, _EYE[2] + down * ray_z


def _wall(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness of the wall's pattern."""
    if kind == "striped":
        return np.where(np.floor(2 * x) % 2 == 0, 1.0, 0.8)
    if kind == "checked":
        return np.where((np.floor(1.5 * x) + np.floor(1.5 * y)) % 2 == 0, 1.0, 0.82)
    if kind == "dotted":
        return np.where((x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.07, 0.75, 1.0)
    return np.ones_like(x)


def _floor(kind: str, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Brightness of the floor's pattern."""
    if kind == "planks":
        return 0.82 + 0.18 * (np.floor(1.6 * x) % 3) / 2
    if kind == "tiles":
        return np.where((np.floor(1.2 * x) + np.floor(1.2 * z)) % 2 == 0, 1.0, 0.78)
    return np.ones_like(x)


def _bytes(colour: np.ndarray) -> np.ndarray:
    """0..1 -> uint8, rounded."""
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)
