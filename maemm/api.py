"""The verbs of the command line as functions: ``maemm.pretrain`` is ``maemm pretrain``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maemm.contract import Source
    from maemm.data.pack import Packed
    from maemm.diagnose.record import Diagnosis
    from maemm.evaluate.embed import Embedded
    from maemm.evaluate.evaluate import Answers
    from maemm.evaluate.figures import Comparison
    from maemm.evaluate.retrieve import Retrieval
    from maemm.evaluate.score import Scores
    from maemm.export.export import Exported
    from maemm.model import Model
    from maemm.report.check import Checked
    from maemm.report.reconstruction import Reconstruction
    from maemm.report.shown import Shown


def pretrain(what: str | os.PathLike | Mapping[str, Any], **overrides: Any) -> Path:
    """``pretrain("my.yaml", **{"data.root": "photos", "train.epochs": 10})`` -> the run folder.

    ``what``: a recipe's name, a YAML file, a run folder or a dictionary. Called again it continues.
    Raises :class:`maemm.MaemmError` for whatever is wrong with the recipe or with the data.
    """
    from maemm import config
    from maemm.train import pretrain as train

    return train(config.load(what if isinstance(what, Mapping) else os.fspath(what), overrides, training=True))


def show(data: str | os.PathLike, out: str | os.PathLike = "show.html", **options: Any) -> Shown:
    """Draw samples of a file or folder as a recipe's model gets them; see :func:`maemm.report.show.show`."""
    from maemm.report.show import show as draw

    return draw(data, out, **options)


def data_check(data: str | os.PathLike, out: str | os.PathLike | None = None, **options: Any) -> Checked:
    """Read all data once: broken and repeated samples, sizes, labels, mean; see :func:`maemm.report.check.check`."""
    from maemm.report.check import check

    return check(data, out, **options)


def data_stats(data: str | os.PathLike, **options: Any) -> Checked:
    """Mean and spread of every channel over all data; see :func:`maemm.report.check.stats`."""
    from maemm.report.check import stats

    return stats(data, **options)


def data_pack(data: str | os.PathLike, out: str | os.PathLike, **options: Any) -> Packed:
    """Rewrite files to a form that is faster to read; see :func:`maemm.report.pack.data_pack`."""
    from maemm.report.pack import data_pack as pack

    return pack(data, out, **options)


def reconstruct(
    what: str | os.PathLike | Model,
    data: str | os.PathLike,
    out: str | os.PathLike = "reconstruction.png",
    **known: Any,
) -> Reconstruction:
    """Draw input, visible part and reconstruction of samples of ``data``; see :mod:`maemm.report.reconstruction`."""
    from maemm.report import reconstruct as draw

    return draw(what, data, out, **known)


def embed(
    what: str | os.PathLike | Model, data: str | os.PathLike | None, out: str | os.PathLike, **options: Any
) -> Embedded:
    """Features of every sample of ``data`` in one file; see :func:`maemm.evaluate.embed.embed`."""
    from maemm.evaluate.embed import embed as write

    return write(what, data, out, **options)


def knn(what: str | os.PathLike | Model, data: str | os.PathLike | None = None, **options: Any) -> Comparison:
    """Nearest neighbours on frozen features; see :func:`maemm.evaluate.verbs.knn`."""
    from maemm.evaluate.verbs import knn as ask

    return ask(what, data, **options)


def probe(what: str | os.PathLike | Model, data: str | os.PathLike | None = None, **options: Any) -> Comparison:
    """Linear and attentive classifiers on frozen features; see :func:`maemm.evaluate.verbs.probe`."""
    from maemm.evaluate.verbs import probe as fit

    return fit(what, data, **options)


def finetune(what: str | os.PathLike, data: str | os.PathLike | None = None, **overrides: Any) -> Path:
    """Train a classifier from what was pre-trained; see :func:`maemm.evaluate.finetune.finetune`."""
    from maemm.evaluate.finetune import finetune as train

    return train(what, data, **overrides)


def evaluate(what: str | os.PathLike | Model, data: str | os.PathLike | None = None, **options: Any) -> Answers:
    """Ask a fine-tuned model about labelled data; see :func:`maemm.evaluate.evaluate.evaluate`."""
    from maemm.evaluate.evaluate import evaluate as ask

    return ask(what, data, **options)


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


def export(what: str | os.PathLike | Model, out: str | os.PathLike, *, to: str, **options: Any) -> Exported:
    """A model for another tool, checked there: timm, hf, safetensors, torch, onnx; see :mod:`maemm.export.export`."""
    from maemm.export.export import export as write

    return write(what, out, to=to, **options)


def diagnose(
    what: str | os.PathLike | Model,
    data: str | os.PathLike | Source | None = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Diagnosis:
    """What a model has learned, on one page; see :func:`maemm.diagnose.diagnose.diagnose`."""
    from maemm.diagnose.diagnose import diagnose as look

    return look(what, data, out, **options)


def retrieve(what: str | os.PathLike | Model, data: str | os.PathLike | None = None, **options: Any) -> Retrieval:
    """Recall between two modalities of the same samples, both ways; see :mod:`maemm.evaluate.retrieve`."""
    from maemm.evaluate.retrieve import retrieve as find

    return find(what, data, **options)


def score(
    what: str | os.PathLike | Model,
    data: str | os.PathLike | Source | None = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Scores:
    """Reconstruction error of every sample and token of ``data``; see :func:`maemm.report.scores.score_data`."""
    from maemm.report.scores import score_data

    return score_data(what, data, out, **options).scores
