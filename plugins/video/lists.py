"""Common list files of video data sets: a path and up to two numbers per line.

``path label`` (VideoMAE, MAE-ST), ``path start frames`` (VideoMAE v2, pre-training), ``path frames label`` (VideoMAE
v2, fine-tuning on frames; MMAction2), and the splits of UCF101 and HMDB51. ``maemm.data.lists`` reads tables.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maemm.contract.errors import MaemmError
from maemm.data.list_text import Line, exists, index_of, list_lines, quoted
from maemm.data.lists import PATH_COLUMNS, Labels, read_list, whole_number

Columns = Literal["path label", "path start frames", "path frames label"]
Part = tuple[int, int]  # first frame and number of frames, -1: all

EXTENSIONS = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"),
    ".gif",
)
_COLUMNS = {*PATH_COLUMNS, "video", "video_path", "clip"}


@dataclass
class Listed:
    """The videos of a list or folder."""

    home: Path  # what the paths are relative to
    paths: list[str]
    labels: Labels | None = None
    classes: list[str] | None = None
    parts: list[Part] = field(default_factory=list)  # empty: whole videos


def read_videos(path: Path, root: Path | None, delimiter: str | None, columns: Columns | None) -> Listed:
    """Read a list file. ``delimiter`` between path and numbers; None: tab, comma or blanks. Raises :class:`MaemmError`.

    Paths may contain blanks if they end like a video, are quoted or are followed by another delimiter. With
    ``classInd.txt`` beside the list (UCF101), the folder of a path is its class.
    """
    lines = _lines(path, root, delimiter)
    index = path.parent / "classInd.txt"
    if index.is_file() and path.name != index.name:
        return _ucf101(path, lines, root, index)
    if delimiter is None and columns is None and _is_table(path, lines[0]):
        _, paths, labels, classes = read_list(path, root, EXTENSIONS, _COLUMNS)
        return Listed(_home(path, root, paths), paths, labels, classes)
    rows = [_row(path, line, delimiter) for line in lines]
    if _is_header(*rows[0]):
        rows = rows[1:]
    if not rows:
        raise MaemmError(f"the list names no video ({path}); write one path a line")
    widths = {len(values) for _, values in rows}
    if len(widths) > 1:
        few, many = min(rows, key=lambda row: len(row[1])), max(rows, key=lambda row: len(row[1]))
        raise MaemmError(
            f"lines of the list have {min(widths)} to {max(widths)} values after the path ({path}: {few[0]!r}, "
            f"{many[0]!r}); quote paths with blanks, or set data.source.delimiter"
        )
    paths = [name for name, _ in rows]
    if not exists(paths[0], (path.parent, root)):
        paths = index_of(paths) or paths
    labels, classes, parts = _interpret(path, [values for _, values in rows], columns)
    return Listed(_home(path, root, paths), paths, labels, classes, parts)


def hmdb51(folder: Path, root: Path | None, split: int, part: str) -> Listed:
    """Read a folder of ``CLASS_test_splitN.txt``: lines ``name.avi 0|1|2``, 1 for training, 2 for testing."""
    ending = f"_test_split{split}.txt"
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    if not files:
        raise MaemmError(f"the folder holds no *{ending} ({folder}); set data.source.split to 1, 2 or 3")
    if root is None:
        raise MaemmError("the splits of HMDB51 do not say where the videos are; set data.root to their folder")
    classes = [file.name.removesuffix(ending) for file in files]
    part_mark = {"train": "1", "test": "2"}[part]
    paths: list[str] = []
    labels: Labels = []
    for label, file in enumerate(files):
        for line in _lines(file):
            name, _, mark = line.strip().rpartition(" ")
            if mark == part_mark:
                paths.append(os.path.join(classes[label], name.strip()))
                labels.append(label)
    if not paths:
        raise MaemmError(
            f"no line of split {split} is marked {part_mark} ({folder}); check that it holds HMDB51's splits"
        )
    return Listed(root, paths, labels, classes)


def _lines(path: Path, root: Path | None = None, delimiter: str | None = None) -> list[Line]:
    lines = list_lines(path, lambda line: _row(path, line, delimiter)[0], (path.parent, root))
    if not lines:
        raise MaemmError(f"the list names no video ({path}); write one path a line")
    return lines


def _is_table(path: Path, line: str) -> bool:
    """Whether cells are separated as the ending says; VideoMAE's own .csv files have blanks between them."""
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    if separator is None or separator not in line:
        return False
    cells = [cell.strip(" \t\"'").lower() for cell in line.split(separator)]
    if not any(cell.endswith(EXTENSIONS) or cell in _COLUMNS for cell in cells):
        raise MaemmError(
            f"the list has no column of paths ({path}: {line}); call one of its columns 'path', or set "
            "data.source.delimiter"
        )
    return True


def _is_header(name: str, values: list[str]) -> bool:
    """Whether a row names the columns; a folder of frames may have such a name, but numbers follow it."""
    return name.lower() in _COLUMNS and not any(value.lstrip("-").isdecimal() for value in values)


def _row(path: Path, line: str, delimiter: str | None) -> tuple[str, list[str]]:
    """One line -> (path, the values after it)."""
    line = Line(line.strip(), line.number) if isinstance(line, Line) else line.strip()
    if (parts := quoted(line, path)) is not None:
        return parts[0], parts[1].replace(delimiter or ",", " ").split()
    if delimiter is not None:
        name, *rest = (cell.strip() for cell in line.split(delimiter))
        if not name:
            raise MaemmError(f"a line of the list has no path ({path}: {line}); add it or drop the line")
        return name, [cell for cell in rest if cell]
    ending = _ENDING.match(line)
    if ending:
        return ending[1], (ending[2] or "").replace(",", " ").split()
    name, *rest = line.replace("\t", " ").split() if "," not in line else [c.strip() for c in line.split(",")]
    return name, rest


_ENDING = re.compile(rf"(.*(?:{'|'.join(re.escape(e) for e in EXTENSIONS)}))(?:[\s,]+(.*))?$", re.IGNORECASE)


def _interpret(
    path: Path, rows: list[list[str]], columns: Columns | None
) -> tuple[Labels | None, list[str] | None, list[Part]]:
    """(labels, classes, parts) from the values after the paths."""
    width = len(rows[0])
    if columns is None:
        columns = "path label" if width < 2 else _guess_columns(path, rows)
    if columns == "path label":
        if width == 0:
            return None, None, []
        return *_labels(path, [row[0] for row in rows]), []
    if width < 2:
        raise MaemmError(f"lines of the list have {width} values after the path ({path}); {columns!r} needs two")
    numbers = _numbers(path, rows)
    if columns == "path start frames":
        return None, None, [(start, count) for start, count in numbers]
    return [label for _, label in numbers], None, [(0, count) for count, _ in numbers]


def _guess_columns(path: Path, rows: list[list[str]]) -> Columns:
    """Two numbers: a start is 0 or 1 (VideoMAE v2, pre-training), a number of frames is more."""
    numbers = _numbers(path, rows)
    if all(start in (0, 1) for start, _ in numbers):
        return "path start frames"
    if all(count > 1 and label >= 0 for count, label in numbers):
        return "path frames label"
    raise MaemmError(
        f"the meaning of the numbers in the list is not clear ({path}); "
        "set data.source.columns to 'path start frames' or 'path frames label'"
    )


def _numbers(path: Path, rows: list[list[str]]) -> list[tuple[int, int]]:
    try:
        return [(whole_number(row[0], path), whole_number(row[1], path)) for row in rows]
    except ValueError as error:
        raise MaemmError(f"a line of the list has no numbers after the path ({path}: {error}); fix it") from None


def _labels(path: Path, texts: list[str]) -> tuple[Labels, list[str] | None]:
    if all(text.removeprefix("-").isdecimal() for text in texts):
        numbers = [whole_number(text, path) for text in texts]
        return [number if number >= 0 else None for number in numbers], None
    if any(text.isdecimal() for text in texts):
        raise MaemmError(f"labels are both numbers and words ({path}); use numbers from 0, or words")
    classes = sorted(set(texts))
    return [classes.index(text) for text in texts], classes


def _ucf101(path: Path, lines: list[Line], root: Path | None, index: Path) -> Listed:
    """Lines ``Class/v_Class_g01_c01.avi 1``; test lists have no number. ``index``: classInd.txt, classes from 1."""
    pairs = [line.split() for line in _lines(index)]
    if any(len(pair) != 2 or not pair[0].isdecimal() for pair in pairs):
        raise MaemmError(f"this is not a class index ({index}); write lines like '1 ApplyEyeMakeup'")
    classes = [name for _, name in sorted(pairs, key=lambda pair: int(pair[0]))]
    number = {name: i for i, name in enumerate(classes)}
    paths = [line.strip().rpartition(" ")[0] if line.strip()[-1].isdecimal() else line.strip() for line in lines]
    unknown = next((name for name in paths if os.path.dirname(name) not in number), None)
    if unknown is not None:
        raise MaemmError(f"a class of the list is not in classInd.txt ({path}: {unknown}); fix the list")
    return Listed(_home(path, root, paths), paths, [number[os.path.dirname(name)] for name in paths], classes)


def _home(path: Path, root: Path | None, paths: list[str]) -> Path:
    """What the paths are relative to: the list's folder if the first path exists there but not below the root."""
    if root is None:
        return path.parent
    in_root = os.path.lexists(replacement_of(os.fsencode(root / paths[0])))
    return root if in_root or not (path.parent / paths[0]).exists() else path.parent


def replacement_of(path: bytes) -> bytes:
    """The path or, if it is missing, its packed form: ``a.mp4`` or a folder ``a`` of frames for ``a.avi``.

    A name without an ending gets ``.mp4``, as in VideoMAE's reader.
    """
    if os.path.lexists(path):
        return path
    stem, ending = os.path.splitext(path)
    others = (stem + b".mp4", stem) if ending else (path + b".mp4",)
    return next((other for other in others if os.path.exists(other)), path if ending else path + b".mp4")
