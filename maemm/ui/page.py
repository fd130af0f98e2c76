"""One HTML file that needs no network and no other file: the frame of every page."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from maemm.data.atomic import write_whole
from maemm.ui.style import CSS

_LARGEST = 8 * 2**20  # bytes of one picture; larger ones are named, not embedded


def document(title: str, lead: str, parts: Iterable[str]) -> str:
    """The whole page; ``title`` and ``lead`` are plain text, ``parts`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)} - maemm</title><link rel="icon" href="data:,"><style>{CSS}</style></head>\n'
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def write_html(path: Path, text: str) -> Path:
    """Write the file whole or not at all."""
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"), "the report")


def picture_figure(path: Path, caption: str) -> str:
    """A picture inside the page."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if not data.startswith(b"\x89PNG") or len(data) > _LARGEST:
        return f'<p class="note">Not shown: {escape(path.name)} (not a picture, or too large for one page)</p>'
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{escape(caption, quote=True)}" src="{source}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'
