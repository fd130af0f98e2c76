"""The files of a data set: folders to search, and list files. For the sources of any plugin."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from maemm.contract import Label
from maemm.contract.errors import MaemmError
from maemm.data.list_text import Line, counts_up, exists, index_of, list_lines, quoted, unclosed

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
    optionally followed by a tab, comma or space and a label; paths may contain spaces and may be quoted. A column
    before the path that numbers the lines is an index. Empty lines and lines that start with # are skipped, unless
    they name a file that is there. Paths are relative to ``root`` if the first one exists there, otherwise to
    the folder of the list. Labels are numbers from 0, or words, which are numbered in alphabetical order. Raises
    :class:`MaemmError` for a list that cannot be read or names no file.
    """
    endings, names, folders = tuple(extensions), {*PATH_COLUMNS, *columns}, (path.parent, root)
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    multilabel = False
    if separator is not None:
        lines = list_lines(path, lambda line: line.split(separator)[0].strip(), folders)
        rows, multilabel = _table_rows(path, lines, endings, names, separator)
    else:
        lines = list_lines(path, lambda line: _split(line.strip(), endings, path)[0], folders)
        rows = _text_rows(path, lines, endings, names)
        rows = _without_index(rows, endings, folders)
    if not rows:
        raise MaemmError(f"the list names no file ({path}); write one path per line")
    paths = [row[0] for row in rows]
    labels, classes = (_multilabel if multilabel else _labels)([row[1] for row in rows], path)
    home = path.parent
    if root is not None and (not (home / paths[0]).exists() or (root / paths[0]).exists()):
        home = root
    return home, paths, labels, classes


def _is_file(text: str, endings: tuple[str, ...]) -> bool:
    return text.strip().lower().endswith(endings)


def _text_rows(path: Path, lines: list[Line], endings: tuple[str, ...], names: set[str]) -> list[tuple[str, str]]:
    """[(path, label or "") of each line of a .txt list]."""
    rows = [_split(Line(line.strip(), line.number), endings, path) for line in lines]
    if rows and not _is_file(rows[0][0], endings) and rows[0][0].lower() in names:
        return rows[1:]  # the first is a header
    return rows


def _split(line: str, endings: tuple[str, ...], path: Path) -> tuple[str, str]:
    """One line of a .txt list -> (path, label or "")."""
    if (parts := quoted(line, path)) is not None:
        return parts[0], parts[1].strip(" \t,")
    if _is_file(line, endings):
        return str(line), ""
    for separator in ("\t", ",", " "):
        name, split, label = line.rpartition(separator)
        if split and _is_file(name, endings):
            return name.strip(), label.strip()
    name, split, label = line.partition("\t")
    return (name.strip(), label.strip()) if split else (str(line), "")


def _without_index(
    rows: list[tuple[str, str]], endings: tuple[str, ...], folders: tuple[Path | None, ...]
) -> list[tuple[str, str]]:
    """Rows without the numbers of lines before their paths, where there are such."""
    if not rows or exists(rows[0][0], folders):
        return rows
    names = index_of([name for name, _ in rows])
    if names is None or not all(_is_file(name, endings) for name in names):
        return rows
    return [(name, label) for name, (_, label) in zip(names, rows, strict=True)]


def _table_rows(
    path: Path, lines: list[Line], endings: tuple[str, ...], names: set[str], separator: str
) -> tuple[list[tuple[str, str]], bool]:
    """[(path, label or "") of each line], and whether there may be several labels."""
    rows = [row for row in _cells(path, lines, separator, endings) if any(row)]
    at_path, at_label, multilabel = 0, 1, False
    if rows and not any(_is_file(cell, endings) for cell in rows[0]):
        at_path, at_label, multilabel = _columns(path, rows.pop(0), names)
    elif rows:
        at_path, at_label = _columns_without_header(path, rows, endings)
    cells = []
    for row in rows:
        if at_path >= len(row) or not row[at_path]:
            raise MaemmError(f"a line of the list has no path ({path}: {separator.join(row)}); add it or drop the line")
        cells.append((row[at_path], row[at_label] if 0 <= at_label < len(row) else ""))
    return cells, multilabel


def _cells(path: Path, lines: list[Line], separator: str, endings: tuple[str, ...]) -> Iterator[list[str]]:
    """The cells of each row. A remark in quotes may have several lines, unless one of them looks like a row."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        first = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected" in str(error):  # the end, or a separator: strict alone says so, of quotes
                raise unclosed(path, lines[first].number) from None
            raise MaemmError(f"the list is not a table ({path}: {error}); write path{separator}label lines") from error
        if any(_is_file(line.split(separator)[0].strip('" '), endings) for line in lines[first + 1 : reader.line_num]):
            raise unclosed(path, lines[first].number)
        yield [cell.strip() for cell in row]


def _columns_without_header(path: Path, rows: list[list[str]], endings: tuple[str, ...]) -> tuple[int, int]:
    """(column of paths, column of labels): path and label, behind an index; or a label and a path."""
    at_path = next(i for i, cell in enumerate(rows[0]) if _is_file(cell, endings))
    if at_path == 0:
        return 0, 1
    before = [row[0] for row in rows]
    if at_path == 1 and all(cell.isdecimal() and len(cell) < 19 for cell in before) and counts_up([*map(int, before)]):
        return 1, 2
    if at_path == 1 and max(map(len, rows)) == 2:
        return 1, 0
    raise MaemmError(
        f"what stands before the path is not clear ({path}: {', '.join(rows[0])}); name the columns in a first line, "
        "such as path and label"
    )


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
    number = next(line.number for line in list_lines(path) if text in line)
    raise MaemmError(f"a number of the list is too large ({path}, line {number}: {text[:40]}); fix it")
