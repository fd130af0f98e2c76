"""The text of list files: their lines, whatever program wrote them, comments and quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from maemm.config.paths import check_regular
from maemm.contract.errors import MaemmError

LONGEST_LINE = 2**20  # characters; a longer one is no line of a table, and millions of cells take gigabytes
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Line(str):
    """A line of a file, with its number from 1."""

    number: int

    def __new__(cls, text: str, number: int) -> Line:
        line = super().__new__(cls, text)
        line.number = number
        return line


def list_lines(
    path: Path, path_of: Callable[[str], str] | None = None, folders: Sequence[Path | None] = ()
) -> list[Line]:
    """Lines of a text file, without empty ones and comments. Raises :class:`MaemmError` where it is no text.

    A line that begins with # is a comment, unless it names a file that is there: ``path_of(line)`` below one of
    ``folders``. Where one such line does, the others with no blank behind the # are names too.
    """
    lines = [line for line in _all_lines(path) if line.strip()]
    marked = {line.number for line in lines if line.lstrip().startswith("#")}
    if not marked:
        return lines
    named = set()
    if path_of is not None:
        hashed = {line.number: path_of(line) for line in lines if line.number in marked}
        named = {number for number, name in hashed.items() if exists(name, folders)}
        if named:
            named |= {line.number for line in lines if line.number in marked and line.lstrip()[1:2].strip()}
    return [line for line in lines if line.number not in marked or line.number in named]


def exists(name: str, folders: Sequence[Path | None]) -> bool:
    """Whether a path is there, below one of the folders."""
    try:
        return any(os.path.lexists(folder / name) for folder in folders if folder is not None)
    except ValueError:  # no path at all
        return False


def _all_lines(path: Path) -> list[Line]:
    """All lines, split at line ends alone: names may hold form feeds and U+2028, which str.splitlines() ends at."""
    text = _text(path)
    pieces = [piece.removesuffix("\r") for piece in text.split("\n")] if "\n" in text else text.split("\r")
    lines = [Line(piece.removeprefix("\ufeff"), number) for number, piece in enumerate(pieces, 1)]
    for line in lines:
        if "\r" in line:
            raise MaemmError(f"the list mixes kinds of line ends ({path}, line {line.number}); save it with one kind")
        if len(line) > LONGEST_LINE:
            raise MaemmError(
                f"a line of the list has {len(line):,} characters ({path}, line {line.number}); write one path per line"
            )
    return lines


def _text(path: Path) -> str:
    try:
        check_regular(path)
        data = path.read_bytes()
    except OSError as error:
        raise MaemmError(f"cannot read the list ({path}: {error.strerror}); check data.list") from error
    encoding = _BOMS.get(data[:2])
    try:
        text = os.fsdecode(data) if encoding is None else data.decode(encoding)
    except UnicodeDecodeError as error:
        raise MaemmError(f"the list is not text ({path}: {error.reason}); save it as UTF-8") from None
    if "\0" in text:
        raise MaemmError(f"the list is not text ({path}); give a .txt, .csv or .tsv file of paths, or a .npy or .npz")
    return text


def quoted(line: str, path: Path) -> tuple[str, str] | None:
    """A line that begins with a quoted path -> (path, what follows); None where it begins with no quote.

    An apostrophe may also begin a name. Raises :class:`MaemmError` where a double quote is not closed.
    """
    mark = line[:1]
    if mark not in ('"', "'") or not mark:
        return None
    closed = re.match(rf"{mark}([^{mark}]*){mark}(?=[\s,;]|$)", line)
    if closed is not None:
        return closed[1], line[closed.end() :]
    if mark == "'":
        return None
    raise unclosed(path, getattr(line, "number", 0))


def unclosed(path: Path, number: int) -> MaemmError:
    """The error of a quote that is not closed, from line ``number`` on."""
    where = f", line {number}" if number else ""
    return MaemmError(f"a quote is not closed ({path}{where}); close it, or double it where it is part of a name")


def index_of(lines: Sequence[str]) -> list[str] | None:
    """What follows an index that numbers the lines ("0,a.png", "1,b.png"); None where there is none."""
    matches = [re.match(r"\s*(\d{1,18})[\s,;]+(?=\S)", line) for line in lines]
    if not all(matches):
        return None
    numbers = [int(match[1]) for match in matches if match is not None]
    if not counts_up(numbers):
        return None
    return [line[match.end() :] for line, match in zip(lines, matches, strict=True) if match is not None]


def counts_up(numbers: Sequence[int]) -> bool:
    """Whether numbers are an index: each is one more than the one before, from 0 or 1 where there is only one."""
    if len(numbers) == 1:
        return numbers[0] in (0, 1)
    return all(second - first == 1 for first, second in zip(numbers, numbers[1:], strict=False))
