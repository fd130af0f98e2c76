"""Pieces of HTML that do more than a picture, by modalities that have one (:meth:`Modality.interactive`)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from maemm.config.paths import check_regular
from maemm.data.atomic import write_whole

if TYPE_CHECKING:
    from maemm.contract import Modality
    from maemm.ui.picture_rows import Rows

LARGEST = 8 * 2**20  # bytes of a piece that a page still embeds


def save_interactive(modalities: Mapping[str, Modality], rows_by_name: Mapping[str, Rows], path: Path) -> Path | None:
    """Write the pieces of all modalities below each other to ``path``; None, and no file, where there are none."""
    pieces = {
        name: piece
        for name, rows in rows_by_name.items()
        if rows.columns and (piece := modalities[name].interactive(rows.columns))
    }
    if not pieces:
        return None
    multiple = len(rows_by_name) > 1
    text = "\n".join((f"<h4>{escape(name)}</h4>" if multiple else "") + piece for name, piece in pieces.items())
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"), "the view")


def interactive_beside(picture: Path) -> Markup:
    """The pieces that :func:`save_interactive` wrote beside a picture; empty where there are none."""
    path = picture.with_suffix(".html")
    try:
        check_regular(path)
        return Markup(path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST else "")
    except (OSError, UnicodeDecodeError):
        return Markup("")
