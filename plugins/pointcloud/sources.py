"""Sources of point clouds: files of a folder or a list, and files that hold many clouds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
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
    columns: Sequence[str | int] | None = None,
    surface: bool | None = None,
    mesh_points: int = 8192,
    nonfinite: Literal["refuse", "drop"] = "refuse",
    split: str | None = None,
    label_before: str | None = None,
) -> Source:
    """The source for ``data.root`` and ``data.list``; which kind it is follows from what is there.

    A folder is searched through; where files lie in folders of exactly one level, those are the classes. Text files
    beside clouds of other kinds are taken for notes, unless ``extensions`` asks for them. A folder or a list of HDF5
    files only, and a .npy, .npz or HDF5 file with an array (n, N, 3 + F), hold many clouds. A list (``data.list``)
    names paths and labels. Any other file is a source of one cloud. Raises :class:`MaemmError` where
    there is nothing to read and where a package for it is missing.

    Options
        name: the modality that the clouds are for
        extensions: endings of the files to take from a folder; null: those of all known kinds
        columns: which columns of a file are taken, by name or number from 0; null: x y z, then the others
        surface: draw points on the surface of meshes; false: take their corners; null: where there are faces
        mesh_points: points drawn on the surface of a mesh
        nonfinite: points with NaN or infinity: refuse the cloud, or drop them
        split: part of a file that has an array ``split``: train, test
        label_before: the class is the file's name up to this text; null: up to - in names that begin like ShapeNet's
    """
    if mesh_points < 2:
        raise MaemmError(f"mesh_points is {mesh_points} (data.source.mesh_points); give 2 or more")
    how = Reading(None if columns is None else (*columns,), surface, mesh_points, nonfinite)
    if not root and not list:
        raise MaemmError("no point clouds are given; set data.root to a folder or a file of them")
    place = None if not root else existing(root, "data.root")
    if list:
        if place is not None and not place.is_dir():
            raise MaemmError(f"data.root is no folder ({root}); with data.list it is what the paths are relative to")
        found = read_list(_a_list(existing(list, "data.list")), place, EXTENSIONS, _PATH_COLUMNS)
        if _only(found[1], _HDF5):
            return _open_stacks([found[0] / path for path in found[1]], how, name, split)
        _no_split(split, list)
        return _clouds(*found, how, name, label_before)
    if not place.is_dir():
        return _open_file(place, how, name, split)
    paths = find_files(place, endings(extensions, EXTENSIONS))
    if not paths:
        taken = " ".join(endings(extensions, EXTENSIONS))
        raise MaemmError(f"no point cloud below the folder ({place}); looked for files that end in {taken}")
    if extensions is None and not _only(paths, _NOTES):
        paths = [path for path in paths if not path.lower().endswith(_NOTES)]
    if _only(paths, _HDF5):
        return _open_stacks([place / path for path in paths], how, name, split)
    _no_split(split, place)
    return _clouds(place, paths, *class_labels(paths), how, name, label_before)


def _a_list(path: Path) -> Path:
    if path.is_dir() or path.suffix.lower() not in _LISTS:
        raise MaemmError(f"data.list is no list of paths ({path}); give a .txt, .csv or .tsv file, or use data.root")
    return path


def _open_file(path: Path, how: Reading, name: str, split: str | None) -> Source:
    """One file: many clouds, or a single one."""
    ending = path.suffix.lower()
    if ending not in EXTENSIONS:
        raise MaemmError(f"data.root is a file of no known kind ({path}); give a folder, or {', '.join(EXTENSIONS)}")
    need([ending])
    stack = open_stack(path) if ending in _MANY else None
    if stack is not None:
        return Stacks([stack], how, name, split)
    _no_split(split, path)
    return Clouds(path.parent, [path.name], None, None, name=name, how=how)


def _open_stacks(paths: Sequence[Path], how: Reading, name: str, split: str | None) -> Source:
    need([".h5"])
    stacks = [open_stack(path) for path in paths]
    if all(one is not None for one in stacks):
        return Stacks(stacks, how, name, split)
    if any(one is not None for one in stacks):
        raise MaemmError(f"some HDF5 files hold one cloud and some many ({paths[0].parent}); keep them apart")
    _no_split(split, paths[0].parent)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return Clouds(folder, [os.fspath(path.relative_to(folder)) for path in paths], None, None, name=name, how=how)


def _only(paths: Sequence[str], kinds: tuple[str, ...]) -> bool:
    return all(path.lower().endswith(kinds) for path in paths)


def _no_split(split: str | None, place: str | Path) -> None:
    if split is not None:
        raise MaemmError(f"only files of many clouds have a split ({place}; data.source.split); give the part's folder")


def _clouds(
    folder: Path,
    paths: Sequence[str],
    labels: Labels | None,
    classes: Sequence[str] | None,
    how: Reading,
    name: str,
    label_before: str | None,
) -> Source:
    need({os.path.splitext(path)[1].lower() for path in paths})
    if labels is None:
        labels, classes = _labels_in_names(paths, label_before)
    return Clouds(folder, paths, labels, classes, name=name, how=how)


def _labels_in_names(paths: Sequence[str], mark: str | None) -> tuple[Labels | None, Sequence[str] | None]:
    """(labels, classes) from names like 02691156-1a04e3.npy (ShapeNet-55), if that is what they are."""
    names = [os.path.basename(path) for path in paths]
    if mark is None:
        if not all(_SYNSET.match(name) for name in names):
            return None, None
        mark = "-"
    odd = next((name for name in names if mark not in name), None)
    if odd is not None or not mark:
        raise MaemmError(f"a file name has no {mark!r} ({odd}; data.source.label_before); leave label_before out")
    texts = [name.split(mark, 1)[0] for name in names]
    classes = sorted(set(texts))
    number = {text: i for i, text in enumerate(classes)}
    return [number[text] for text in texts], classes


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
        how: Reading | None = None,
    ):
        super().__init__(folder, paths, labels, classes, name=name)
        self.how = how or Reading()

    def open(self, path: bytes, rng: Rng) -> np.ndarray:
        return read_cloud(path, self.how, rng)
