"""The contract between the core and its plugins: all that a plugin author must read.

    source -> load (worker) -> collate -> prepare (device) -> tokenize -> plan
           -> encoder (visible only) -> decoder (+ mask tokens) -> loss per token -> objectives

Letters in shapes: B samples, R plan rows (B, or k times B when every sample gets k plans), N tokens of a
sample, V visible, M predicted, A axes, D width, O values of a predicted token, P prefix tokens.

A part's keyword-only constructor parameters *are* its options: recipes are checked against their names and
type hints, and ``maemm plugins show`` prints them. Positional parameters come from :func:`maemm.build`.

The names below load when they are first used: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maemm.contract.data import (
        Label,
        Latents,
        ModalityInput,
        Output,
        Plan,
        Preprocessed,
        Sample,
        Term,
        Tokens,
        gather_tokens,
    )
    from maemm.contract.errors import MaemmError
    from maemm.contract.grid import GridModality
    from maemm.contract.parts import (
        CheckpointFormat,
        Decoder,
        Encoder,
        ExportedState,
        Head,
        Masking,
        Modality,
        Objective,
        PerModalityMasking,
        Source,
        Target,
    )
    from maemm.contract.rng import Rng
    from maemm.contract.version import CONTRACT_VERSION

_MODULES = {
    "data": (
        "Label", "Latents", "ModalityInput", "Output", "Plan", "Preprocessed", "Sample", "Term", "Tokens",
        "gather_tokens",
    ),
    "errors": ("MaemmError",),
    "grid": ("GridModality",),
    "parts": (
        "Decoder", "Encoder", "ExportedState", "Head", "Masking", "Modality", "Objective", "PerModalityMasking",
        "Source", "Target", "CheckpointFormat",
    ),
    "rng": ("Rng",),
    "version": ("CONTRACT_VERSION",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "CONTRACT_VERSION",
    "Decoder",
    "Rng",
    "Encoder",
    "GridModality",
    "ExportedState",
    "Head",
    "Label",
    "Latents",
    "MaemmError",
    "ModalityInput",
    "Masking",
    "Modality",
    "Objective",
    "PerModalityMasking",
    "Output",
    "Plan",
    "Preprocessed",
    "Sample",
    "Source",
    "Target",
    "Term",
    "Tokens",
    "CheckpointFormat",
    "gather_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
