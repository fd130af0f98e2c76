"""Files of JSON that a run writes and reads again; whatever has become of them in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maemm.config.paths import check_regular

_LONGEST = 1 << 20  # bytes; no run writes longer lines
_LARGEST = 16 << 20  # bytes of a file that holds one record


def lines_of(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines of a file from byte ``start``, with their line breaks, which the last may lack.

    One that is too long for a run comes in pieces, none of which is JSON. Raises OSError.
    """
    check_regular(path)
    with path.open("rb") as file:
        file.seek(start)
        yield from iter(lambda: file.readline(_LONGEST), b"")


def record_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None where it holds none."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def record_in(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds, or None where it holds none, or cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return record_of(file.read(_LARGEST))
    except OSError:
        return None
