"""The verbs of the command line as functions: ``maemm.pretrain`` is ``maemm pretrain``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maemm.model import Model
    from maemm.report.reconstruction import Reconstruction


def pretrain(what: str | os.PathLike | Mapping[str, Any], **overrides: Any) -> Path:
    """``pretrain("my.yaml", **{"data.root": "photos", "train.epochs": 10})`` -> the run folder.

    ``what``: a recipe's name, a YAML file, a run folder or a dictionary. Called again it continues.
    Raises :class:`maemm.MaemmError` for whatever is wrong with the recipe or with the data.
    """
    from maemm import config
    from maemm.train import pretrain as train

    return train(config.load(what if isinstance(what, Mapping) else os.fspath(what), overrides, training=True))


def reconstruct(
    what: str | os.PathLike | Model,
    data: str | os.PathLike,
    out: str | os.PathLike = "reconstruction.png",
    **known: Any,
) -> Reconstruction:
    """Draw input, visible part and reconstruction of samples of ``data``; see :mod:`maemm.report.reconstruction`."""
    from maemm.report import reconstruct as draw

    return draw(what, data, out, **known)


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    kind: str | None = None,
    to: str | None = None,
    **known: Any,
) -> str:
    """Published weights to maemm's format, or with ``to`` back to a published layout; returns a line of text."""
    from maemm.weights import convert as turn

    return turn(Path(source), Path(out), kind=kind, to=to, **known)
