"""Sources of images: files of a folder or a list, and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.arrays import LABELS, ArrayFile
from maemm.data.files import endings, existing
from maemm.data.lists import Labels, class_labels, find_files, read_list

from .load import EXTENSIONS, channels_first, plain_pixels, read_image

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
    background: int = 255,
    channels_first: bool | None = None,
) -> Source:
    """The source for ``data.root`` and ``data.list``; which kind it is follows from what is there.

    A folder is searched through; where images lie in folders of exactly one level, those are the classes. A list
    (``data.list``, or a .txt, .csv or .tsv file as root) names paths and labels. A .npy or .npz file holds pixels
    (N, H, W), (N, H, W, C) or (N, C, H, W). Any other image file as root is one sample. Raises :class:`MaemmError`
    where there is nothing to read.

    Options
        name: the modality that the images are for
        extensions: endings of the files to take from a folder; null: those of all known kinds
        background: grey level below transparent pixels, 0 .. 255
        channels_first: order of a 4-D array; null: channels are the smaller of its second and last dimension
    """
    if not 0 <= background <= 255:
        raise MaemmError(f"background is {background} (data.source.background); give 0 to 255")
    if not root and not list:
        raise MaemmError("no images are given; set data.root to a folder, or to a .npy, .npz, .txt, .csv or .tsv file")
    folder = None if not root else existing(root, "data.root")
    if list:
        if folder is not None and not folder.is_dir():
            raise MaemmError(f"data.root is no folder ({root}); with data.list it is what the paths are relative to")
        return _open_list(existing(list, "data.list"), folder, name, background)
    if folder.is_dir():
        return _open_folder(folder, name, background, endings(extensions, EXTENSIONS))
    suffix = folder.suffix.lower()
    if suffix in _ARRAYS:
        return Arrays(folder, name, channels_first)
    if suffix in _LISTS:
        return _open_list(folder, None, name, background)
    if suffix in endings(extensions, EXTENSIONS):
        return Files(folder.parent, [folder.name], None, None, name=name, background=background)
    raise MaemmError(
        f"data.root is a file of no known kind ({root}); give an image, a folder of images, or a "
        f"{', '.join(_ARRAYS + _LISTS[:-1])} or {_LISTS[-1]} file"
    )


def _open_folder(folder: Path, name: str, background: int, taken: tuple[str, ...]) -> Files:
    paths = find_files(folder, taken)
    if not paths:
        raise MaemmError(f"no image below the folder ({folder}); looked for files that end in {' '.join(taken)}")
    return Files(folder, paths, *class_labels(paths), name=name, background=background)


def _open_list(path: Path, root: Path | None, name: str, background: int) -> Source:
    if path.suffix.lower() in _ARRAYS or path.is_dir():
        raise MaemmError(f"data.list is no list of paths ({path}); give it as data.root")
    return Files(*read_list(path, root, EXTENSIONS, _PATH_COLUMNS), name=name, background=background)


class Files(files.Files):
    """Image files below a folder."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Labels | None,
        classes: Sequence[str] | None,
        *,
        name: str = "image",
        background: int = 255,
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self.background = background

    def open(self, path: bytes, rng: Rng) -> np.ndarray:
        return read_image(path, self.background)


class Arrays(ArrayFile):
    """Images of one size in a .npy file (mapped, so it may be larger than memory) or a .npz file (read into memory).

    Pixels stand under one of ``x images image data x_train`` or are the only array that can be images; labels under
    one of ``y labels label targets y_train``. (N, H, W) is grey. Of (N, ?, ?, ?) the channels are the smaller of the
    second and the last dimension, the last if they are equal, unless ``first`` says so.
    """

    def __init__(self, path: Path, name: str = "image", first: bool | None = None):
        super().__init__(path, name)
        shape = self._values.shape
        self._first = len(shape) == 4 and (channels_first(shape) if first is None else first)

    def find(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        with file.open("rb") as opened:
            if opened.read(2) == b"PK":  # a zip archive
                opened.seek(0)
                return _members(np.load(opened, allow_pickle=False), file)
        return np.load(file, mmap_mode="r", allow_pickle=False), None

    def check(self, values: np.ndarray) -> None:
        _check_pixels(values, self.file)

    def sample(self, values: np.ndarray) -> np.ndarray:
        if self._first:
            values = np.moveaxis(values, 0, -1)
        return plain_pixels(values.reshape(*values.shape[:2], -1))


def _members(archive: Any, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels and the labels in a .npz file."""
    with archive:
        key = next((key for key in _PIXEL_KEYS if key in archive.files), None)
        if key is None:
            fit = [key for key in archive.files if archive[key].ndim in (3, 4) and archive[key].dtype.kind in "buf"]
            if len(fit) != 1:
                held = ", ".join(f"{key} {archive[key].shape} {archive[key].dtype}" for key in archive.files)
                raise MaemmError(f"cannot tell which array holds the images ({file}: {held or 'none'}); call it 'x'")
            key = fit[0]
        label_key = next((key for key in LABELS if key in archive.files), None)
        return archive[key], None if label_key is None else archive[label_key]


def _check_pixels(pixels: np.ndarray, file: Path) -> None:
    if pixels.ndim not in (3, 4):
        raise MaemmError(
            f"images need 3 or 4 dimensions, the array has shape {pixels.shape} ({file}); "
            "store (N, H, W) or (N, H, W, C)"
        )
    if not pixels.size:
        raise MaemmError(f"the array holds no pixels (shape {pixels.shape}, {file}); give another file")
    try:
        plain_pixels(np.zeros(1, pixels.dtype))
    except ValueError as error:
        raise MaemmError(f"{error} ({file})") from error
