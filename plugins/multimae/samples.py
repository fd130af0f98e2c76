"""The sample set of pictures with depth and labels: the procedural objects, as parallel folders of PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt

from .._objects.objects import COUNT, SHAPES, make_objects
from .._objects.render import render, render_maps
from .._objects.store import default_root, write_once
from .sources import open_maps

PIXELS = 64
VERSION = 1  # raise it whenever a pixel changes: an old folder is then refused instead of mixed up
DEPTH_UNIT = 8192  # of 16 bits: steps for a unit of the room
KINDS = ("rgb", "depth", "semseg")
TYPES = {"rgb": "image", "depth": "depth", "semseg": "label_map"}  # sources of the kinds


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` samples as ``root/rgb/SHAPE/0007.png``, ``root/depth/...`` and ``root/semseg/...``, once.

    Pictures are those of the image sample set (64 x 64 RGB). Depth is 16-bit grey, 8192 for a unit of the room; labels
    are 8-bit numbers: wall, floor, then the object's material. The label of a sample is its shape.
    """
    _write(root, "multimae", KINDS, count, seed)


def _write(root: Path, name: str, kinds: Sequence[str], count: int, seed: int) -> None:
    def fill(folder: Path) -> None:
        places = {kind: folder / kind if len(kinds) > 1 else folder for kind in kinds}
        for place in places.values():
            for shape in SHAPES:
                (place / shape).mkdir(parents=True)
        for thing in make_objects(count, seed):
            depth, classes = render_maps(thing, PIXELS)
            file = Path(thing.shape) / f"{thing.index:04d}.png"
            if "rgb" in places:
                render(thing, PIXELS).save(places["rgb"] / file)
            if "depth" in places:
                Image.fromarray((depth * DEPTH_UNIT).round().astype(np.uint16)).save(places["depth"] / file)
            if "semseg" in places:
                Image.fromarray(classes).save(places["semseg"] / file)

    content: dict[str, object] = {
        "kind": name, "version": VERSION, "count": count, "seed": seed, "pixels": PIXELS, "kinds": [*kinds],
    }  # fmt: skip
    write_once(root, content, fill)


def write_depth(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """The depth of the same samples alone, ``root/SHAPE/0007.png``."""
    _write(root, "depth", ("depth",), count, seed)


def write_labels(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """The labels of the same samples alone, ``root/SHAPE/0007.png``."""
    _write(root, "label_map", ("semseg",), count, seed)


def open_samples(
    root: str | None,
    list: str | None = None,
    *,
    rgb: str = "rgb",
    depth: str = "depth",
    semseg: str = "semseg",
    missing: Literal["refuse", "skip", "allow"] = "refuse",
) -> Source:
    """The source of recipes that work without data: without ``data.root`` the sample set, written on first use; with it
    the parallel folders rgb, depth and semseg below it. Raises :class:`MaemmError`.

    Options
        rgb: the modality that the pictures are for
        depth: the modality that the depth is for
        semseg: the modality that the labels are for
        missing: names that not every folder has, as in the source maps
    """
    home = root or default_root("multimae", write)
    names = {rgb: "rgb", depth: "depth", semseg: "semseg"}
    parts = {name: {"type": TYPES[kind], "root": str(Path(home) / kind)} for name, kind in names.items()}
    return open_maps(home, list, parts=parts, missing=missing)
