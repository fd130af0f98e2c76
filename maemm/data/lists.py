"""Where the files of a data set are: folders searched through, and list files. For sources of any plugin."""

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
_SEVERAL_COLUMNS = ("labels", "classes", "targets", "tags")  # any number of them, between commas, semicolons or bars

Labels = list[Label | None]


def find_files(root: Path, extensions: Iterable[str]) -> list[str]:
    """Paths of files with these endings (lower case) relative to ``root``, sorted, in all its folders.

    Hidden files and folders are left out. Links to folders are followed, each folder is entered once. Links that lead
    nowhere are listed, so that they are counted as unreadable.
    """
    endings = tuple(extensions)
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            folders = _scan(root, folder, endings, found)
        except OSError as error:
            raise MaemmError(f"cannot list a folder ({root / folder}: {error.strerror}); give access to it") from error
        waiting += sorted(folders, reverse=True)  # so that the first of two links to a folder is always the same
    found.sort()
    return found


def _scan(root: Path, folder: str, endings: tuple[str, ...], found: list[str]) -> list[str]:
    """Add the files of one folder to ``found``; -> its folders."""
    folders = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            try:
                folder_here, file_here = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                folder_here = file_here = False
            if folder_here:
                folders.append(path)
            elif entry.name.lower().endswith(endings) and (file_here or _leads_nowhere(entry)):
                found.append(path)
    return folders


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def class_labels(paths: list[str]) -> tuple[Labels | None, list[str] | None]:
    """(labels, classes) if all files lie in folders of exactly one level, two of them at least; else (None, None)."""
    folders = [os.path.dirname(path) for path in paths]
    classes = sorted(set(folders))
    if len(classes) < 2 or any(not name or os.sep in name for name in classes):
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return [number[name] for name in folders], classes


def strays(paths: list[str]) -> list[str]:
    """The files that keep folders from being classes: those outside of folders of one level, where most lie in such."""
    folders = {path: os.path.dirname(path) for path in paths}
    odd = [path for path, folder in folders.items() if not folder or os.sep in folder]
    classes = {folder for folder in folders.values() if folder and os.sep not in folder}
    return odd if len(classes) > 1 and 2 * len(odd) < len(folders) else []


# --------------------------------------------------------------------------------------------------- list files
def read_list(
    path: Path, root: Path | None, extensions: Iterable[str], columns: Iterable[str] = ()
) -> tuple[Path, list[str], Labels | None, list[str] | None]:
    """A list file -> (folder of its relative paths, paths, labels, classes).

    ``extensions``: endings of the files that it names, lower case, by which a path is told from a header or a label.
    ``columns``: more names that the column of paths may have.

    ``.csv``: cells between commas, ``.tsv``: between tabs; with a header, the columns are found by name, otherwise
    they are path and label; a column called labels holds any number of them, as in ``"dog,rain"``, which may be none.
    ``.txt``: a path a line, then possibly a tab, comma or blank and a label; blanks inside a
    path do no harm, and it may stand in quotes. Lines that are empty or start with # are passed over. Paths are
    relative to ``root`` if the first one is found there, otherwise to the folder of the list. Labels are numbers from
    0, or words, which are numbered in alphabetical order.
    """
    lines, endings, names = _lines(path), tuple(extensions), {*PATH_COLUMNS, *columns}
    table = path.suffix.lower() in (".csv", ".tsv")
    multilabel = False
    if table:
        found, multilabel = _table_rows(path, lines, endings, names)
        rows = list(found)
    else:
        rows = list(_text_rows(lines, endings, names))
    if not rows:
        raise MaemmError(f"the list names no file ({path}); write one path a line")
    paths = [row[0] for row in rows]
    labels, classes = (_multilabel if multilabel else _labels)([row[1] for row in rows], path)
    home = path.parent
    if root is not None and (not (home / paths[0]).exists() or (root / paths[0]).exists()):
        home = root
    return home, paths, labels, classes


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MaemmError(f"cannot read the list ({path}: {error.strerror}); check data.list") from error
    if b"\0" in data:
        raise MaemmError(f"the list is no text ({path}); give a .txt, .csv or .tsv file of paths, or a .npy or .npz")
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
        path, found, label = line.rpartition(separator)
        if found and _is_file(path, endings):
            return path.strip(), label.strip()
    path, found, label = line.partition("\t")
    return (path.strip(), label.strip()) if found else (line, "")


def _table_rows(
    path: Path, lines: list[str], endings: tuple[str, ...], names: set[str]
) -> tuple[Iterator[tuple[str, str]], bool]:
    """(path, label or "") of each line, and whether there may be several labels."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except csv.Error as error:
        raise MaemmError(f"the list is no table ({path}: {error}); write path{separator}label lines") from error
    rows = [row for row in rows if any(row)]
    at_path, at_label, multilabel = 0, 1, False
    if rows and not any(_is_file(cell, endings) for cell in rows[0]):
        at_path, at_label, multilabel = _columns(path, rows.pop(0), names)
    return _cells(path, rows, separator, at_path, at_label), multilabel


def _cells(path: Path, rows: list[list[str]], separator: str, at_path: int, at_label: int) -> Iterator[tuple[str, str]]:
    for row in rows:
        if at_path >= len(row) or not row[at_path]:
            raise MaemmError(f"a line of the list has no path ({path}: {separator.join(row)}); add it or drop the line")
        yield row[at_path], row[at_label] if 0 <= at_label < len(row) else ""


def _columns(path: Path, header: list[str], known: set[str]) -> tuple[int, int, bool]:
    """Where path and label stand, by the names in a header (-1: there is no label), and whether there are several."""
    names = [cell.lower() for cell in header]
    at_path = next((i for i, name in enumerate(names) if name in known), None)
    if at_path is None:
        raise MaemmError(f"the list has no column of paths ({path}: {', '.join(header)}); call one of them 'path'")
    for known, multilabel in ((_LABEL_COLUMNS, False), (_SEVERAL_COLUMNS, True)):
        at_label = next((i for i, name in enumerate(names) if name in known), None)
        if at_label is not None:
            return at_path, at_label, multilabel
    return at_path, -1, False


def _multilabel(texts: list[str], path: Path) -> tuple[Labels | None, list[str] | None]:
    """Cells of any number of labels; an empty cell is a sample with none of the classes."""
    rows = [[one.strip() for one in re.split("[,;|]", text) if one.strip()] for text in texts]
    flat, classes = _labels([one for row in rows for one in row], path)
    if flat is None:
        return None, None
    numbers = iter(flat)
    return [tuple(next(numbers) for _ in row) for row in rows], classes


def _labels(texts: list[str], path: Path) -> tuple[Labels | None, list[str] | None]:
    known = {text for text in texts if text}
    if not known:
        return None, None
    if all(text.isdecimal() for text in known):
        return [whole_number(text, path) if text else None for text in texts], None
    if any(text.lstrip("-").isdecimal() for text in known):
        odd = min(text for text in known if not text.isdecimal())
        raise MaemmError(f"labels are both numbers and words ({path}: {odd!r}); use numbers from 0, or words")
    classes = sorted(known)
    number = {name: i for i, name in enumerate(classes)}
    return [number[text] if text else None for text in texts], classes


def whole_number(text: str, path: Path) -> int:
    """The number in a cell of a list. Raises ValueError where it is none, :class:`MaemmError` beyond 64 bits."""
    if len(text) < 19 or not text.lstrip("-").isdecimal():
        return int(text)
    lines = os.fsdecode(path.read_bytes()).splitlines()
    line = next(number for number, words in enumerate(lines, 1) if text in words)
    raise MaemmError(f"a number of the list is too large ({path}, line {line}: {text[:40]}); fix it")
