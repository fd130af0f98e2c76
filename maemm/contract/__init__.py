"""The contract between the core and its plugins: where a plugin author starts to read.

    source -> load (worker) -> collate -> preprocess (device) -> tokenize -> plan
           -> encoder (visible tokens only) -> decoder (+ mask tokens) -> loss per token -> objectives

Letters in shapes: B samples, R rows of a plan (B, or k times B where every sample gets k plans), N tokens of a
sample, V visible tokens, M predicted tokens, A axes, D width, O values of a predicted token, C channels, P values of
a patch (in ``prefix``: prefix tokens, such as a class token), L labels of a sample.

A part's keyword-only constructor parameters *are* its options: recipes are checked against their names and
type hints, and ``maemm plugins show`` prints them. Bounds stand in the hints, see :mod:`maemm.contract.options`.
Positional parameters come from :func:`maemm.build`: each kind of part below says which it gets.

The names below are loaded when they are first used: importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maemm.contract.data import (
        FirstAttention,
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
    from maemm.contract.errors import DataLost, MaemmError, NotInstalled
    from maemm.contract.formats import CheckpointFormat, ExportedState
    from maemm.contract.grid import GridModality
    from maemm.contract.learning import Objective, Phase, Target
    from maemm.contract.masking import Masking, PerModalityMasking
    from maemm.contract.modality import Modality
    from maemm.contract.networks import Decoder, Encoder, Head
    from maemm.contract.rng import Rng
    from maemm.contract.source import Source
    from maemm.contract.tracking import TrackedRun, Tracker
    from maemm.contract.version import CONTRACT_VERSION

_NAMES = {
    "data": (
        "FirstAttention", "Label", "Latents", "ModalityInput", "Output", "Plan", "Preprocessed", "Sample", "Term",
        "Tokens", "gather_tokens",
    ),
    "errors": ("DataLost", "MaemmError", "NotInstalled"),
    "formats": ("CheckpointFormat", "ExportedState"),
    "grid": ("GridModality",),
    "learning": ("Objective", "Phase", "Target",),
    "masking": ("Masking", "PerModalityMasking",),
    "modality": ("Modality",),
    "networks": ("Decoder", "Encoder", "Head",),
    "source": ("Source",),
    "tracking": ("TrackedRun", "Tracker"),
    "rng": ("Rng",),
    "version": ("CONTRACT_VERSION",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "CONTRACT_VERSION",
    "CheckpointFormat",
    "DataLost",
    "Decoder",
    "Encoder",
    "ExportedState",
    "FirstAttention",
    "GridModality",
    "Head",
    "Label",
    "Latents",
    "MaemmError",
    "Masking",
    "Modality",
    "ModalityInput",
    "NotInstalled",
    "Objective",
    "Output",
    "PerModalityMasking",
    "Phase",
    "Plan",
    "Preprocessed",
    "Rng",
    "Sample",
    "Source",
    "Target",
    "Term",
    "Tokens",
    "TrackedRun",
    "Tracker",
    "gather_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
