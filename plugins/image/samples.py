"""The image sample set: pictures of the procedural objects as ordinary PNG files in one folder per shape."""

from __future__ import annotations

from pathlib import Path

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt

from .._objects.objects import COUNT
from .._objects.render import render
from .._objects.store import default_root, write_objects
from .sources import open_images

PIXELS = 64
VERSION = 1  # raise it whenever a pixel changes: an old folder is then refused instead of mixed up


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` pictures (64 x 64 RGB) as ``root/SHAPE/0007.png``; a second call does nothing.

    The label is the folder's name, and the number is the object's index, the same in every modality.
    ``.objects.json`` holds all parameters. Byte for byte the same on one platform.
    """
    write_objects(
        root, "image", VERSION, count, seed,
        lambda path, thing: render(thing, PIXELS).save(path), ".png", pixels=PIXELS,
    )  # fmt: skip


def open_samples(root: str | None, list: str | None = None, *, name: str = "image") -> Source:
    """The source of recipes that work without data: without ``data.root`` the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary source of images. Raises :class:`MaemmError`.

    Options
        name: the modality that the images are for
    """
    return open_images(root if root or list else default_root("image", write), list, name=name)
