"""The list of sample objects: a pure function of (seed, index), the same for all modalities.

A picture shows an object at time 0, a clip moves it, a sound plays its pitch and timbre, a point set samples its
surface. Index i is the same object everywhere, so samples of several modalities can be paired by index.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SHAPES = ("cone", "cube", "cylinder", "pyramid", "sphere", "torus")
COLOURS: dict[str, tuple[float, float, float]] = {  # RGB in 0 .. 1, for flat shading
    "red": (0.86, 0.16, 0.16),
    "orange": (0.95, 0.53, 0.10),
    "yellow": (0.95, 0.83, 0.18),
    "green": (0.20, 0.64, 0.27),
    "cyan": (0.16, 0.70, 0.75),
    "blue": (0.18, 0.35, 0.85),
    "purple": (0.55, 0.25, 0.75),
    "white": (0.92, 0.92, 0.90),
}
MATERIALS = ("plain", "shiny", "striped", "checked")
WALLS = ("plain", "striped", "checked", "dotted")
FLOORS = ("plain", "planks", "tiles")
COUNT = 600


@dataclass(frozen=True)
class Object:
    """One object in its little room. Lengths in room units (the floor is y = 0, the view is about 3 wide)."""

    index: int
    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    material: str  # one of MATERIALS
    size: float  # radius of the sphere around it
    rotation: tuple[float, float, float]  # radians: turn about y, then tilt about x, then roll about z
    spin: float  # radians per second about y
    position: tuple[float, float, float]  # x to the right, y up (height of its lowest point), z to the viewer
    velocity: tuple[float, float, float]  # units per second
    pitch: float  # Hz: small objects sound high
    harmonics: tuple[float, ...]  # amplitude of overtones 1, 2, ..., the timbre: sharp shapes have more
    decay: float  # seconds until its sound has fallen to 1/e
    light: float  # radians: direction of the light, 0 = from the viewer
    wall: str  # one of WALLS
    wall_colour: tuple[float, float, float]
    wall_scale: float  # patterns per unit
    floor: str  # one of FLOORS
    floor_colour: tuple[float, float, float]

    def at(self, time: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """(position, rotation) at ``time`` seconds: straight motion, steady spin."""
        x, y, z = (p + v * time for p, v in zip(self.position, self.velocity, strict=True))
        turn, tilt, roll = self.rotation
        return (x, y, z), (turn + self.spin * time, tilt, roll)

    def record(self) -> dict[str, Any]:
        """Its parameters as plain values, for JSON."""
        return asdict(self)


_SHARPNESS = {"sphere": 0.15, "torus": 0.3, "cylinder": 0.45, "cone": 0.6, "cube": 0.75, "pyramid": 0.9}


def make_object(index: int, seed: int = 0) -> Object:
    """Object ``index`` of the list ``seed``. Shapes alternate, so any multiple of ``len(SHAPES)`` is balanced."""
    rng = np.random.default_rng([seed, index])
    shape = SHAPES[index % len(SHAPES)]
    size = _between(rng, 0.62, 1.0)
    pitch = 220.0 * 2.0 ** (2.0 * (1.0 - size) / 0.38 + _between(rng, -0.1, 0.1))
    sharpness = _SHARPNESS[shape]
    return Object(
        index=index,
        shape=shape,
        colour=_pick(rng, tuple(COLOURS)),
        material=_pick(rng, MATERIALS),
        size=size,
        rotation=(_between(rng, 0, 2 * math.pi), _between(rng, -0.35, 0.35), _between(rng, -0.35, 0.35)),
        spin=_between(rng, -2.5, 2.5),
        position=(_between(rng, -0.55, 0.55), 0.0, _between(rng, -0.5, 0.4)),
        velocity=(_between(rng, -0.6, 0.6), 0.0, _between(rng, -0.3, 0.3)),
        pitch=pitch,
        harmonics=tuple(round(sharpness**k, 6) for k in range(1, 7)),
        decay=_between(rng, 0.3, 1.2),
        light=_between(rng, -1.0, 1.0),
        wall=_pick(rng, WALLS),
        wall_colour=_pale(rng),
        wall_scale=_between(rng, 0.8, 1.4),
        floor=_pick(rng, FLOORS),
        floor_colour=_pale(rng, 0.75),
    )


def make_objects(count: int = COUNT, seed: int = 0) -> list[Object]:
    """The first ``count`` objects of the list ``seed``."""
    return [make_object(index, seed) for index in range(count)]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * rng.random())


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.random() * len(names))]


def _pale(rng: np.random.Generator, brightness: float = 0.95) -> tuple[float, float, float]:
    """A weak colour, so that the object stands out."""
    red, green, blue = (float(x) for x in brightness * (0.6 + 0.4 * rng.random(3)))
    return red, green, blue
