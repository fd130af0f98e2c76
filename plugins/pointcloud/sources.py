"""Sources of point clouds: files of a folder or a list, and files with many clouds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegativeInt
from maemm.contract.rng import Rng
from maemm.data import files
from maemm.data.files import endings, existing
from maemm.data.lists import Labels, class_labels, find_files, read_list

from .readers import EXTENSIONS, need, read_cloud
from .readers.pick import Reading
from .stacks import Stacks, open_stack

_HDF5 = (".h5", ".hdf5")
_MANY = (".npy", ".npz", *_HDF5)  # may hold many clouds
_NOTES = (".txt", ".csv")
_LISTS = (".txt", ".csv", ".tsv")
_PATH_COLUMNS = ("cloud", "point_cloud", "points", "mesh", "model", "object_path")
_SYNSET = re.compile(r"\d{8}-")  # a number of WordNet, as in ShapeNet's file names


def open_pointclouds(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "pointcloud",
    extensions: Sequence[str] | None = None,
    columns: Sequence[str | NonNegativeInt] | None = None,
    surface: bool | None = None,
    mesh_points: Annotated[int, Ge(2)] = 8192,
    nonfinite: Literal["refuse", "drop"] = "refuse",
    split: str | None = None,
    label_before: str | None = None,
) -> Source:
    """The source for ``data.root`` and ``data.list``; which kind it is follows from what is there.

    A folder is searched recursively; if files are in subfolders of exactly one level, those are the classes. Text files
    beside clouds of other formats are ignored unless ``extensions`` names them. A folder or list of only HDF5 files,
    and a .npy, .npz or HDF5 file with an array (n, N, 3 + F), have many clouds. A list (``data.list``) names paths and
    labels. Any other file is a source of one cloud. Raises :class:`MaemmError` if there is nothing to read or a
    package is missing.

    Options
        name: the modality that the clouds are for
        extensions: endings of the files to use from a folder; null: those of all known formats
        columns: columns of a file to use, by name or number from 0; null: x y z, then the others
        surface: sample points on the surface of meshes; false: use their vertices; null: if there are faces
        mesh_points: points to sample on the surface of a mesh
        nonfinite: points with NaN or infinity: refuse the cloud, or drop them
        split: split to use of a file that has an array ``split``: train, test
        label_before: the class is the file's name up to this text; null: up to - in names like ShapeNet's
    """
    options = Reading(None if columns is None else (*columns,), surface, mesh_points, nonfinite)
    if not root and not list:
        raise MaemmError("no point clouds are given; set data.root to a folder or a file of them")
    folder = existing(root, "data.root") if root else None
    if list:
        if folder is not None and not folder.is_dir():
            raise MaemmError(f"data.root is not a folder ({root}); with data.list it is what the paths are relative to")
        list_path = existing(list, "data.list")
        if list_path.is_dir() or list_path.suffix.lower() not in _LISTS:
            raise MaemmError(
                f"data.list is not a list of paths ({list_path}); give a .txt, .csv or .tsv file, or use data.root"
            )
        labels: Labels | None
        classes: Sequence[str] | None
        folder, paths, labels, classes = read_list(list_path, folder, EXTENSIONS, _PATH_COLUMNS)
    else:
        assert folder is not None
        if not folder.is_dir():
            return _open_file(folder, options, name, split)
        suffixes = endings(extensions, EXTENSIONS)
        paths = find_files(folder, suffixes)
        if not paths:
            looked_for = " ".join(suffixes)
            raise MaemmError(f"no point cloud below the folder ({folder}); looked for files that end in {looked_for}")
        if extensions is None and not _all_end_in(paths, _NOTES):
            paths = [path for path in paths if not path.lower().endswith(_NOTES)]
        labels, classes = class_labels(paths)
    if _all_end_in(paths, _HDF5):
        return _open_stacks([folder / path for path in paths], options, name, split)
    _refuse_split(split, list or folder)
    need({os.path.splitext(path)[1].lower() for path in paths})
    if labels is None:
        labels, classes = _labels_in_names(paths, label_before)
    return Clouds(folder, paths, labels, classes, name=name, options=options)


def _open_file(path: Path, options: Reading, name: str, split: str | None) -> Source:
    """One file: many clouds, or a single one."""
    ending = path.suffix.lower()
    if ending not in EXTENSIONS:
        raise MaemmError(f"data.root has an unknown file format ({path}); give a folder, or {', '.join(EXTENSIONS)}")
    need([ending])
    stack = open_stack(path) if ending in _MANY else None
    if stack is not None:
        return Stacks([stack], options, name, split)
    _refuse_split(split, path)
    return Clouds(path.parent, [path.name], None, None, name=name, options=options)


def _open_stacks(paths: Sequence[Path], options: Reading, name: str, split: str | None) -> Source:
    need([".h5"])
    stacks = [stack for stack in map(open_stack, paths) if stack is not None]
    if len(stacks) == len(paths):
        return Stacks(stacks, options, name, split)
    if stacks:
        raise MaemmError(f"some HDF5 files hold one cloud and some many ({paths[0].parent}); separate them")
    _refuse_split(split, paths[0].parent)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [os.fspath(path.relative_to(folder)) for path in paths]
    return Clouds(folder, names, None, None, name=name, options=options)


def _all_end_in(paths: Sequence[str], suffixes: tuple[str, ...]) -> bool:
    return all(path.lower().endswith(suffixes) for path in paths)


def _refuse_split(split: str | None, path: str | Path) -> None:
    if split is not None:
        raise MaemmError(f"only files of many clouds have a split ({path}; data.source.split); give the split's folder")


def _labels_in_names(paths: Sequence[str], mark: str | None) -> tuple[Labels | None, Sequence[str] | None]:
    """(labels, classes) from names like 02691156-1a04e3.npy (ShapeNet-55); (None, None) for other names."""
    names = [os.path.basename(path) for path in paths]
    if mark is None:
        if not all(_SYNSET.match(name) for name in names):
            return None, None
        mark = "-"
    unmarked = next((name for name in names if mark not in name), None)
    if unmarked is not None or not mark:
        raise MaemmError(f"a file name has no {mark!r} ({unmarked}; data.source.label_before); leave label_before out")
    texts = [name.split(mark, 1)[0] for name in names]
    classes = sorted(set(texts))
    label_of = {text: label for label, text in enumerate(classes)}
    return [label_of[text] for text in texts], classes


class Clouds(files.Files):
    """Files of one cloud each."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: Labels | None,
        classes: Sequence[str] | None,
        *,
        name: str = "pointcloud",
        options: Reading | None = None,
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self.options = options or Reading()

    def open(self, path: bytes, rng: Rng) -> np.ndarray:
        return read_cloud(path, self.options, rng)
