"""Masked autoencoders for any modality.

The names below are loaded when they are first used, so that ``import maemm`` stays cheap: it imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maemm.api import (
        convert,
        data_check,
        data_pack,
        data_stats,
        diagnose,
        embed,
        evaluate,
        export,
        finetune,
        knn,
        pretrain,
        probe,
        reconstruct,
        retrieve,
        score,
        show,
    )
    from maemm.build import build
    from maemm.contract import Output, Plan, Planned, Prepared, Tokens
    from maemm.draws import Draw
    from maemm.errors import MaemmError
    from maemm.model import Model
    from maemm.plugins import Plugin
    from maemm.weights import load, save

_HOME = {
    "load": "maemm.weights",
    "save": "maemm.weights",
    "build": "maemm.build",
    "pretrain": "maemm.api",
    "reconstruct": "maemm.api",
    "retrieve": "maemm.api",
    "convert": "maemm.api",
    "export": "maemm.api",
    "diagnose": "maemm.api",
    "probe": "maemm.api",
    "knn": "maemm.api",
    "finetune": "maemm.api",
    "evaluate": "maemm.api",
    "embed": "maemm.api",
    "show": "maemm.api",
    "data_check": "maemm.api",
    "data_pack": "maemm.api",
    "data_stats": "maemm.api",
    "score": "maemm.api",
    "Model": "maemm.model",
    "Plan": "maemm.contract",
    "Planned": "maemm.contract",
    "Prepared": "maemm.contract",
    "Tokens": "maemm.contract",
    "Output": "maemm.contract",
    "Draw": "maemm.draws",
    "Plugin": "maemm.plugins",
    "MaemmError": "maemm.errors",
}
_MODULES = ("config", "contract", "plugins")  # submodules that are used as ``maemm.config.load``
__all__ = [
    "Draw",
    "MaemmError",
    "Model",
    "Output",
    "Plan",
    "Planned",
    "Plugin",
    "Prepared",
    "Tokens",
    "__version__",
    "build",
    "convert",
    "data_check",
    "data_pack",
    "data_stats",
    "diagnose",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "knn",
    "load",
    "pretrain",
    "probe",
    "reconstruct",
    "retrieve",
    "save",
    "score",
    "show",
]


class _Package(ModuleType):
    """Python binds a submodule on its package when it is imported: ``maemm.build`` shall stay the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"maemm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'maemm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
