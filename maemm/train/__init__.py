"""Training: the loop and what it stands on. Names load when first used, so that registries can be read cheaply."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"pretrain": "maemm.train.loop", "Interrupted": "maemm.train.signals"}
__all__ = ["Interrupted", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
