"""The files of a data set: folders to search, and list files. For the sources of any plugin."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from maemm.contract import Label
from maemm.contract.errors import MaemmError

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path")
_LABEL_COLUMNS = ("label", "class", "target", "category", "y", "label_id", "class_id", "class_name")
_MULTILABEL_COLUMNS = ("labels", "classes", "targets", "tags")  # any number of labels, separated by , ; or |

Labels = list[Label | None]


def find_files(root: Path, extensions: Iterable[str]) -> list[str]:
    """Paths of all files with these endings (lower case) below ``root``, relative to it and sorted.

    Hidden files and folders are left out. Links to folders are followed, but each folder is entered once. Broken links
    are listed, so that they are counted as unreadable. Raises :class:`MaemmError` for a folder that cannot be listed.
    """
    endings = tuple(extensions)
    paths: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            folders = _scan(root, folder, endings, paths)
        except OSError as error:
            raise MaemmError(f"cannot list a folder ({root / folder}: {error.strerror}); give access to it") from error
        waiting += sorted(folders, reverse=True)  # so that the first of two links to a folder is always the same
    paths.sort()
    return paths


def _scan(root: Path, folder: str, endings: tuple[str, ...], paths: list[str]) -> list[str]:
    """Add the files of one folder to ``paths``; -> its folders."""
    folders = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                folders.append(path)
            elif entry.name.lower().endswith(endings):
                broken_link = entry.is_symlink() and not os.path.exists(entry.path)
                if is_file or broken_link:
                    paths.append(path)
    return folders


def class_labels(paths: list[str]) -> tuple[Labels | None, list[str] | None]:
    """(labels, classes) if all files lie in folders of exactly one level, at least two of them; else (None, None)."""
    folders = [os.path.dirname(path) for path in paths]
    classes = sorted(set(folders))
    if len(classes) < 2 or any(not name or os.sep in name for name in classes):
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return [number[name] for name in folders], classes


def strays(paths: list[str]) -> list[str]:
    """The few files that keep folders from being classes: where most files lie in folders of one level, the others."""
    folders = {path: os.path.dirname(path) for path in paths}
    odd = [path for path, folder in folders.items() if not folder or os.sep in folder]
    classes = {folder for folder in folders.values() if folder and os.sep not in folder}
    return odd if len(classes) > 1 and 2 * len(odd) < len(folders) else []


# --------------------------------------------------------------------------------------------------- list files
def read_list(
    path: Path, root: Path | None, extensions: Iterable[str], columns: Iterable[str] = ()
) -> tuple[Path, list[str], Labels | None, list[str] | None]:
    """Read a list file -> (folder that the paths are relative to, paths, labels, classes).

    ``extensions``: endings of the files in the list, lower case, which distinguish a path from a header or a label.
    ``columns``: further names that the column of paths may have.

    ``.csv`` (commas) and ``.tsv`` (tabs): with a header, the columns are found by name, otherwise they are path and
    label; a column called labels holds any number of them, as in ``"dog,rain"``, or none. ``.txt``: one path per line,
    optionally followed by a tab, comma or space and a label; paths may contain spaces and may be quoted. Empty lines
    and lines that start with # are skipped. Paths are relative to ``root`` if the first one exists there, otherwise to
    the folder of the list. Labels are numbers from 0, or words, which are numbered in alphabetical order. Raises
    :class:`MaemmError` for a list that cannot be read or names no file.
    """
    lines, endings, names = list_lines(path), tuple(extensions), {*PATH_COLUMNS, *columns}
    table = path.suffix.lower() in (".csv", ".tsv")
    multilabel = False
    if table:
        rows, multilabel = _table_rows(path, lines, endings, names)
    else:
        rows = list(_text_rows(lines, endings, names))
    if not rows:
        raise MaemmError(f"the list names no file ({path}); write one path per line")
    paths = [row[0] for row in rows]
    labels, classes = (_multilabel if multilabel else _labels)([row[1] for row in rows], path)
    home = path.parent
    if root is not None and (not (home / paths[0]).exists() or (root / paths[0]).exists()):
        home = root
    return home, paths, labels, classes


def list_lines(path: Path) -> list[str]:
    """Lines of a text file, without empty ones and comments. Raises :class:`MaemmError` where it is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MaemmError(f"cannot read the list ({path}: {error.strerror}); check data.list") from error
    if b"\0" in data:
        raise MaemmError(f"the list is not text ({path}); give a .txt, .csv or .tsv file of paths, or a .npy or .npz")
    lines = os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _is_file(text: str, endings: tuple[str, ...]) -> bool:
    return text.strip().lower().endswith(endings)


def _text_rows(lines: list[str], endings: tuple[str, ...], names: set[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines):
        path, label = _split(line.strip(), endings)
        if number or _is_file(path, endings) or path.lower() not in names:  # otherwise it is a header
            yield path, label


def _split(line: str, endings: tuple[str, ...]) -> tuple[str, str]:
    """One line of a .txt list -> (path, label or "")."""
    if line[0] in "\"'" and (end := line.find(line[0], 1)) > 0:
        return line[1:end], line[end + 1 :].strip(" \t,")
    if _is_file(line, endings):
        return line, ""
    for separator in ("\t", ",", " "):
        path, split, label = line.rpartition(separator)
        if split and _is_file(path, endings):
            return path.strip(), label.strip()
    path, split, label = line.partition("\t")
    return (path.strip(), label.strip()) if split else (line, "")


def _table_rows(
    path: Path, lines: list[str], endings: tuple[str, ...], names: set[str]
) -> tuple[list[tuple[str, str]], bool]:
    """[(path, label or "") of each line], and whether there may be several labels."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except csv.Error as error:
        raise MaemmError(f"the list is not a table ({path}: {error}); write path{separator}label lines") from error
    rows = [row for row in rows if any(row)]
    at_path, at_label, multilabel = 0, 1, False
    if rows and not any(_is_file(cell, endings) for cell in rows[0]):
        at_path, at_label, multilabel = _columns(path, rows.pop(0), names)
    cells = []
    for row in rows:
        if at_path >= len(row) or not row[at_path]:
            raise MaemmError(f"a line of the list has no path ({path}: {separator.join(row)}); add it or drop the line")
        cells.append((row[at_path], row[at_label] if 0 <= at_label < len(row) else ""))
    return cells, multilabel


def _columns(path: Path, header: list[str], path_names: set[str]) -> tuple[int, int, bool]:
    """(column of paths, column of labels or -1, whether it may hold several), by the names in the header."""
    names = [cell.lower() for cell in header]

    def position(of: Iterable[str]) -> int:
        return next((i for i, name in enumerate(names) if name in of), -1)

    at_path = position(path_names)
    if at_path < 0:
        raise MaemmError(f"the list has no column of paths ({path}: {', '.join(header)}); call one of them 'path'")
    at_label = position(_LABEL_COLUMNS)
    if at_label >= 0:
        return at_path, at_label, False
    at_label = position(_MULTILABEL_COLUMNS)
    return at_path, at_label, at_label >= 0


def _multilabel(texts: list[str], path: Path) -> tuple[Labels | None, list[str] | None]:
    """Labels and classes of cells with any number of labels; an empty cell is a sample with none of the classes."""
    rows = [[text.strip() for text in re.split("[,;|]", cell) if text.strip()] for cell in texts]
    number, classes = _numbering({text for row in rows for text in row}, path)
    return (None, None) if number is None else ([tuple(number[text] for text in row) for row in rows], classes)


def _labels(texts: list[str], path: Path) -> tuple[Labels | None, list[str] | None]:
    """Labels and classes of cells with one label each, or none."""
    number, classes = _numbering({text for text in texts if text}, path)
    return (None, None) if number is None else ([number[text] if text else None for text in texts], classes)


def _numbering(texts: set[str], path: Path) -> tuple[dict[str, int] | None, list[str] | None]:
    """({text: label}, classes or None where labels are numbers); (None, None) without any text."""
    if not texts:
        return None, None
    if all(text.isdecimal() for text in texts):
        return {text: whole_number(text, path) for text in sorted(texts)}, None
    if any(text.lstrip("-").isdecimal() for text in texts):
        odd = min(text for text in texts if not text.isdecimal())
        raise MaemmError(f"labels are both numbers and words ({path}: {odd!r}); use numbers from 0, or words")
    classes = sorted(texts)
    return {name: i for i, name in enumerate(classes)}, classes


def whole_number(text: str, path: Path) -> int:
    """The integer in a cell of a list. Raises ValueError for other text, :class:`MaemmError` for 19 digits or more."""
    if len(text) < 19 or not text.lstrip("-").isdecimal():
        return int(text)
    lines = os.fsdecode(path.read_bytes()).splitlines()
    line = next(number for number, words in enumerate(lines, 1) if text in words)
    raise MaemmError(f"a number of the list is too large ({path}, line {line}: {text[:40]}); fix it")
