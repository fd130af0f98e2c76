"""Check a decoding backend once, before the first file."""

from __future__ import annotations

import importlib
import importlib.util

from maemm.contract.errors import MaemmError


def check_backend(name: str) -> None:
    """Raises :class:`MaemmError` if the package of a backend is missing or cannot be loaded."""
    if importlib.util.find_spec(name) is None:
        raise MaemmError(
            f"the backend {name!r} is not installed (backend); run: {_INSTALL.get(name, f'pip install {name}')}, "
            "or use the backend av"
        )
    if name not in _INSTALL:
        return
    try:
        importlib.import_module(name)
    except Exception as error:  # it loads FFmpeg's libraries when it is imported
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MaemmError(
            f"the backend {name!r} cannot be loaded ({lines[0].strip()}); install FFmpeg and the release of {name} for "
            "this torch, or use the backend av"
        ) from error


_INSTALL = {"torchcodec": "pip install 'maemm[torchcodec]' (it also needs FFmpeg's libraries in the system)"}
