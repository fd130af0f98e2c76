"""Pages that need no network and no other file, from the templates in ``ui/templates``.

Python prepares what a page shows, a template lays it out. Values are escaped, unless they are
:class:`~markupsafe.Markup`, which only templates and the modalities' interactive pieces make.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from maemm.config.paths import check_regular
from maemm.data.atomic import write_whole

_LARGEST = 8 * 2**20  # bytes of a PNG; larger ones are named, not embedded
_QUALITY = 85  # of WebP: a quarter of the bytes of the same PNG

_TEMPLATES = Environment(
    loader=PackageLoader("maemm.ui"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **data: Any) -> Markup:
    """The template filled in, ready to stand in another one."""
    return Markup(_TEMPLATES.get_template(template).render(data))


def write_html(path: Path, text: str) -> Path:
    """Write the file whole or not at all; what UTF-8 does not have (names of files that are no UTF-8) is escaped."""
    data = text.encode("utf-8", "backslashreplace")
    return write_whole(path, lambda file: file.write_bytes(data), "the report")


def embedded(picture: Path | bytes, width: int | None = None) -> str:
    """A PNG as a data URI, at most ``width`` pixels wide; "" where it is no PNG, cannot be read or is too large."""
    try:
        if isinstance(picture, Path):
            check_regular(picture)
        data = picture.read_bytes() if isinstance(picture, Path) else picture
    except OSError:
        return ""
    if not data.startswith(b"\x89PNG") or len(data) > _LARGEST:
        return ""
    kind = "image/png"
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if width is not None and image.width > width:
            image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=_QUALITY)
        data, kind = file.getvalue(), "image/webp"
    except (OSError, ValueError):  # broken, higher than WebP allows (16,383), or Pillow was built without WebP
        pass
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
