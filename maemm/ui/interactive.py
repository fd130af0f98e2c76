"""Pieces of HTML that do more than a picture, by modalities that have one (:meth:`Modality.interactive`)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from maemm.data.atomic import write_whole

if TYPE_CHECKING:
    from maemm.contract import Modality
    from maemm.ui.picture_rows import Rows

LARGEST = 8 * 2**20  # bytes of a piece that a page still takes in


def save_interactive(modalities: Mapping[str, Modality], made: Mapping[str, Rows], path: Path) -> Path | None:
    """Write the pieces of all modalities below each other; None where there is none. ``path``: beside the picture."""
    pieces = {name: modalities[name].interactive(rows.columns) for name, rows in made.items() if rows.columns}
    pieces = {name: piece for name, piece in pieces.items() if piece}
    if not pieces:
        return None
    multiple = len(made) > 1
    text = "\n".join((f"<h4>{escape(name)}</h4>" if multiple else "") + piece for name, piece in pieces.items())
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"), "the view")


def interactive_beside(picture: Path) -> str:
    """The pieces that were written beside a picture, ready for a page; "" where there are none."""
    path = picture.with_suffix(".html")
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST else ""
    except (OSError, UnicodeDecodeError):
        return ""
    return f'<figure class="view">{text}</figure>' if text else ""
