"""Sources of images: files of a folder or a list, and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
from annotated_types import Ge, Le
from numpy.lib.npyio import NpzFile

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.arrays import LABELS, ArrayFile, open_array_file
from maemm.data.files import endings, existing
from maemm.data.lists import Labels, class_labels, find_files, read_list

from .._images.load import EXTENSIONS, MOST_PIXELS, channels_first, plain_pixels, read_image

_ARRAYS = (".npy", ".npz")
_LISTS = (".txt", ".csv", ".tsv")
_PIXEL_KEYS = ("x", "images", "image", "data", "x_train")
_PATH_COLUMNS = ("image", "image_path", "img")  # of a list, besides the usual ones


def open_images(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "image",
    extensions: Sequence[str] | None = None,
    background: Annotated[int, Ge(0), Le(255)] = 255,
    channels_first: bool | None = None,
    most_pixels: PositiveInt | None = None,
) -> Source:
    """The source for ``data.root`` and ``data.list``, by what they are.

    A folder is searched recursively; where all images lie in folders of exactly one level, those are the classes. A
    list (``data.list``, or a .txt, .csv or .tsv file as root) names paths and labels. A .npy or .npz file holds pixels
    (N, H, W), (N, H, W, C) or (N, C, H, W). Any other image file as root is one sample. Raises :class:`MaemmError`
    where there is nothing to read.

    Options
        name: the modality that the images are for
        extensions: endings of the files to take from a folder; null: those of all known kinds
        background: grey level behind transparent pixels, 0 .. 255
        channels_first: order of a 4-D array; null: channels are the smaller of its second and last dimension
        most_pixels: pictures with more are refused, since a few bytes may claim any size; null: 178,956,970
    """
    options: _Options = {"name": name, "background": background, "most_pixels": most_pixels or MOST_PIXELS}
    if not root and not list:
        raise MaemmError("no images are given; set data.root to a folder, or to a .npy, .npz, .txt, .csv or .tsv file")
    folder = existing(root, "data.root") if root else None
    if list:
        if folder is not None and not folder.is_dir():
            raise MaemmError(f"data.root is no folder ({root}); with data.list it is what the paths are relative to")
        return _open_list(existing(list, "data.list"), folder, options)
    assert folder is not None
    suffixes = endings(extensions, EXTENSIONS)
    if folder.is_dir():
        paths = find_files(folder, suffixes)
        if not paths:
            raise MaemmError(f"no image below the folder ({folder}); looked for files that end in {' '.join(suffixes)}")
        return Files(folder, paths, *class_labels(paths), **options)
    suffix = folder.suffix.lower()
    if suffix in _ARRAYS:
        return Arrays(folder, name, channels_first)
    if suffix in _LISTS:
        return _open_list(folder, None, options)
    if suffix in suffixes:
        return Files(folder.parent, [folder.name], None, None, **options)
    raise MaemmError(
        f"data.root is a file of no known kind ({root}); give an image, a folder of images, or a "
        f"{', '.join(_ARRAYS + _LISTS[:-1])} or {_LISTS[-1]} file"
    )


class _Options(TypedDict):
    """Options of :class:`Files`."""

    name: str
    background: int
    most_pixels: int


def _open_list(path: Path, root: Path | None, options: _Options) -> Source:
    if path.suffix.lower() in _ARRAYS or path.is_dir():
        raise MaemmError(f"data.list is no list of paths ({path}); give it as data.root")
    return Files(*read_list(path, root, EXTENSIONS, _PATH_COLUMNS), **options)


class Files(files.Files):
    """Image files below a folder."""

    serves_any_file = True

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Labels | None,
        classes: Sequence[str] | None,
        *,
        name: str = "image",
        background: int = 255,
        most_pixels: int = MOST_PIXELS,
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self.background, self.most_pixels = background, most_pixels

    def open(self, path: bytes, rng: Rng) -> np.ndarray:
        return read_image(path, self.background, self.most_pixels)


class Arrays(ArrayFile):
    """Images of one size in a .npy file (mapped, so it may be larger than memory) or a .npz file (read into memory).

    The key of the pixels is one of ``x images image data x_train``, or they are the only array that can be images; that
    of labels one of ``y labels label targets y_train``. (N, H, W) is grey. Of 4 dimensions the channels are the smaller
    of the second and the last, the last if they are equal, unless ``first`` is given.
    """

    def __init__(self, path: Path, name: str = "image", first: bool | None = None):
        super().__init__(path, name)
        shape = self._values.shape
        self._first = len(shape) == 4 and (channels_first(shape) if first is None else first)

    def find(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        with open_array_file(file) as stored:
            return (stored, None) if isinstance(stored, np.ndarray) else _members(stored, file)

    def check(self, values: np.ndarray) -> None:
        if values.ndim not in (3, 4):
            raise MaemmError(
                f"images need 3 or 4 dimensions, the array has shape {values.shape} ({self.file}); "
                "store (N, H, W) or (N, H, W, C)"
            )
        if not values.size:
            raise MaemmError(f"the array holds no pixels (shape {values.shape}, {self.file}); give another file")
        try:
            plain_pixels(np.zeros(1, values.dtype))
        except ValueError as error:
            raise MaemmError(f"{error} ({self.file})") from error

    def sample(self, values: np.ndarray) -> np.ndarray:
        if self._first:
            values = np.moveaxis(values, 0, -1)
        return plain_pixels(values.reshape(*values.shape[:2], -1))


def _members(archive: NpzFile, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels and the labels in a .npz file."""
    key = next((key for key in _PIXEL_KEYS if key in archive.files), None)
    if key is None:
        arrays = {key: archive[key] for key in archive.files}
        candidates = [key for key, x in arrays.items() if x.ndim in (3, 4) and x.dtype.kind in "buf"]
        if len(candidates) != 1:
            content = ", ".join(f"{key} {x.shape} {x.dtype}" for key, x in arrays.items()) or "none"
            raise MaemmError(f"cannot tell which array holds the images ({file}: {content}); call it 'x'")
        key = candidates[0]
    label_key = next((key for key in LABELS if key in archive.files), None)
    return archive[key], None if label_key is None else archive[label_key]
