"""What a person looks at: pictures of reconstructions and the page of a run. Names load when first used."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "write_page": "maemm.report.page",
    "save_pictures": "maemm.report.pictures",
    "reconstruct": "maemm.report.reconstruction",
}
__all__ = ["reconstruct", "save_pictures", "write_page"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
