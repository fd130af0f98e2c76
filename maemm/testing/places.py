"""Which line of a plugin's code did something: the innermost one of a traceback, or of the code that runs now."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

_SUITE = Path(__file__).parent


def plugin_line(package: str, error: BaseException | None = None) -> str | None:
    """``maemm_sonar/modality.py:45``: the innermost line below the folder of ``package`` that raised ``error``, or, by
    default, that the calling code was called from. None: the plugin has no part in it."""
    if error is not None:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    else:
        frames = []
        current: FrameType | None = sys._getframe(1)
        while current is not None:
            frames.insert(0, (current.f_code.co_filename, current.f_lineno))
            current = current.f_back
    return _innermost(package, frames)


def _innermost(package: str, frames: Iterable[tuple[str, int | None]]) -> str | None:
    """The last of ``frames`` (file, line), outermost first, that is code of the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    home = Path(spec.origin).resolve().parent
    for name, line in reversed(list(frames)):
        file = Path(name).resolve()
        if home in file.parents and _SUITE not in (file.parent, home):
            return f"{file.relative_to(home.parent)}:{line}"
    return None
