"""The one place where matplotlib is imported: for pictures in files, whatever the user's own settings are.

Pictures need no screen and no backend of the user's, and should look alike everywhere. Notebooks name a backend in
``MPLBACKEND`` that may not be installed here, and a ``matplotlibrc`` may ask for LaTeX.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_BACKEND, _SETTINGS = "MPLBACKEND", "MATPLOTLIBRC"


@contextmanager
def drawing() -> Iterator[Any]:
    """``with drawing() as Figure:`` matplotlib's class of figures, under its defaults and the backend Agg.

    The settings and the backend of the user are as before afterwards.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    # As the plain dictionaries that they are: matplotlib's own access would load the backend.
    settings: dict[str, Any] = matplotlib.rcParams
    before = dict(dict.items(settings))
    dict.update(settings, {**dict(dict.items(matplotlib.rcParamsDefault)), "backend": "agg"})
    try:
        with _environment(_BACKEND, "Agg"):
            yield Figure
    finally:
        dict.update(settings, before)


def _matplotlib() -> Any:
    """matplotlib; imported for the first time, with the user's settings where they can be used."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    with _environment(_BACKEND, None) as requested:
        try:
            matplotlib = importlib.import_module("matplotlib")
        except Exception:  # a matplotlibrc that cannot be read
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                del sys.modules[name]
            with _environment(_SETTINGS, _own_settings()):
                matplotlib = importlib.import_module("matplotlib")
    if requested:
        with suppress(Exception):  # a backend that is not installed here
            matplotlib.rcParams["backend"] = requested
    return matplotlib


def _own_settings() -> str:
    """The file of matplotlib's defaults."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "mpl-data" / "matplotlibrc")


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[str | None]:
    """Within the block the variable is ``value`` (None: unset); yields what it was."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield before
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
