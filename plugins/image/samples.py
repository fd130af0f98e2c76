"""The image sample set: pictures of the procedural objects as ordinary PNG files in one folder per shape."""

from __future__ import annotations

import json
from pathlib import Path

from maemm.contract import Source

from .._objects.objects import COUNT, SHAPES, make_objects
from .._objects.render import render
from .._objects.store import write_once
from .sources import open_images

HOME = Path("runs/samples/image")  # below the working directory, beside the runs
PIXELS = 64
VERSION = 1  # raise it whenever a pixel changes: an old folder is then refused instead of mixed up


def write(root: Path, *, count: int = COUNT, seed: int = 0) -> None:
    """Write ``count`` pictures (64 x 64 RGB) as ``root/SHAPE/0007.png``; a second call does nothing.

    The label is the folder's name, and the number is the object's index, the same in every modality.
    ``.objects.json`` holds all parameters. Byte for byte the same on one platform.
    """
    what = {"kind": "image", "version": VERSION, "count": count, "seed": seed, "pixels": PIXELS}
    write_once(root, what, lambda folder: _fill(folder, count, seed))


def open_samples(root: str | None, list: str | None = None, *, name: str = "image") -> Source:
    """The source of recipes that work without data: without ``data.root`` the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary image source. Raises :class:`MaemmError`.

    Options
        name: the modality that the images are for
    """
    if not root and not list:
        write(HOME)
        root = str(HOME)
    return open_images(root, list, name=name)


def _fill(folder: Path, count: int, seed: int) -> None:
    objects = make_objects(count, seed)
    for shape in SHAPES:
        (folder / shape).mkdir()
    for thing in objects:
        render(thing, PIXELS).save(folder / thing.shape / f"{thing.index:04d}.png")
    text = json.dumps([thing.record() for thing in objects])
    (folder / ".objects.json").write_text(text + "\n", encoding="utf-8")
