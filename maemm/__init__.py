"""Masked autoencoders for any modality.

The names below are loaded when they are first used, so that ``import maemm`` is fast: it does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from maemm.contract.version import __version__

if TYPE_CHECKING:
    from maemm.contract import MaemmError, ModalityInput, Output, Plan, Preprocessed, Rng, Tokens
    from maemm.model.build import build
    from maemm.model.model import Model
    from maemm.registry import Plugin
    from maemm.tasks.ablate.run import ablate
    from maemm.tasks.convert.run import convert
    from maemm.tasks.data.check import data_check, data_stats
    from maemm.tasks.data.pack import data_pack
    from maemm.tasks.diagnose.run import diagnose
    from maemm.tasks.embed.run import embed
    from maemm.tasks.estimate.run import estimate
    from maemm.tasks.evaluate.run import evaluate
    from maemm.tasks.export.run import export
    from maemm.tasks.finetune.run import finetune
    from maemm.tasks.knn.run import knn
    from maemm.tasks.modalities.run import modalities
    from maemm.tasks.parity.run import parity
    from maemm.tasks.pretrain.run import pretrain
    from maemm.tasks.probe.run import probe
    from maemm.tasks.reconstruct.run import reconstruct
    from maemm.tasks.retrieve.run import retrieve
    from maemm.tasks.runs.run import runs, runs_best, runs_compare
    from maemm.tasks.score.run import score
    from maemm.tasks.show.run import show
    from maemm.weights import load, save

_MODULE_OF = {
    "load": "maemm.weights",
    "save": "maemm.weights",
    "ablate": "maemm.tasks.ablate.run",
    "build": "maemm.model.build",
    "pretrain": "maemm.tasks.pretrain.run",
    "modalities": "maemm.tasks.modalities.run",
    "parity": "maemm.tasks.parity.run",
    "reconstruct": "maemm.tasks.reconstruct.run",
    "retrieve": "maemm.tasks.retrieve.run",
    "runs": "maemm.tasks.runs.run",
    "runs_best": "maemm.tasks.runs.run",
    "runs_compare": "maemm.tasks.runs.run",
    "convert": "maemm.tasks.convert.run",
    "export": "maemm.tasks.export.run",
    "diagnose": "maemm.tasks.diagnose.run",
    "estimate": "maemm.tasks.estimate.run",
    "probe": "maemm.tasks.probe.run",
    "knn": "maemm.tasks.knn.run",
    "finetune": "maemm.tasks.finetune.run",
    "evaluate": "maemm.tasks.evaluate.run",
    "embed": "maemm.tasks.embed.run",
    "show": "maemm.tasks.show.run",
    "data_check": "maemm.tasks.data.check",
    "data_pack": "maemm.tasks.data.pack",
    "data_stats": "maemm.tasks.data.check",
    "score": "maemm.tasks.score.run",
    "Model": "maemm.model.model",
    "Plan": "maemm.contract",
    "ModalityInput": "maemm.contract",
    "Preprocessed": "maemm.contract",
    "Tokens": "maemm.contract",
    "Output": "maemm.contract",
    "Rng": "maemm.contract",
    "Plugin": "maemm.registry",
    "MaemmError": "maemm.contract",
}
_SUBMODULES = ("config", "contract", "registry")  # used as ``maemm.config.load``
__all__ = [
    "Rng",
    "MaemmError",
    "Model",
    "Output",
    "Plan",
    "ModalityInput",
    "Plugin",
    "Preprocessed",
    "Tokens",
    "__version__",
    "ablate",
    "build",
    "convert",
    "data_check",
    "data_pack",
    "data_stats",
    "diagnose",
    "embed",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "knn",
    "load",
    "modalities",
    "parity",
    "pretrain",
    "probe",
    "reconstruct",
    "retrieve",
    "runs",
    "runs_best",
    "runs_compare",
    "save",
    "score",
    "show",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"maemm.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'maemm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
