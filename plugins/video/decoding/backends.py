"""Whether a backend can be used here, asked before the first file instead of at each of them."""

from __future__ import annotations

import importlib
import importlib.util

from maemm.contract.errors import MaemmError


def check_backend(name: str) -> None:
    """Raises :class:`MaemmError` where the package of a backend is missing, or cannot be loaded."""
    if importlib.util.find_spec(name) is None:
        raise MaemmError(
            f"the backend {name!r} is not installed (backend); run: {_INSTALL.get(name, f'pip install {name}')}, "
            "or leave the backend at av"
        )
    if name not in _INSTALL:
        return
    try:
        importlib.import_module(name)
    except Exception as error:  # its own libraries are looked for when it is imported
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MaemmError(
            f"the backend {name!r} cannot be loaded ({lines[0].strip()}); install FFmpeg and the release of {name} for "
            "this torch, or leave the backend at av"
        ) from error


_INSTALL = {"torchcodec": "pip install 'maemm[torchcodec]' (it also needs FFmpeg's libraries in the system)"}
