"""``maemm evaluate`` as a function: a fine-tuned model on labelled data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maemm.config.messages import value_text
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.labels import Labelled
from maemm.data.locks import writes
from maemm.data.single_pass import Progress
from maemm.model.metrics import mean_average_precision
from maemm.model.model import Model
from maemm.tasks._shared.comparison import (
    average_precision_rows,
    average_precision_text,
    confusion_counts,
    per_class_rows,
    per_class_text,
)
from maemm.tasks._shared.embedding import contents, features
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import (
    NO_LABELS,
    Data,
    Weights,
    data_config,
    open_data,
    open_encoder,
    open_model,
    some_labels,
)
from maemm.tasks._shared.records import refresh_page, save_record
from maemm.tasks._shared.tables import as_multilabel
from maemm.tasks.evaluate.passes import Average, Passes
from maemm.tasks.evaluate.seen import Seen, seen, warnings_of
from maemm.ui.text import aligned
from maemm.weights import rebuilt

OWN_DATA = "no data are named: these are metrics on the run's own training data; name the data to test with"


@dataclass(frozen=True)
class Answers:
    """The predictions of a classifier."""

    logits: dict[str, np.ndarray]  # by stream, (n, classes)
    labels: np.ndarray  # (n,); multi-label (n, classes) of 0 and 1
    classes: tuple[str, ...]
    skipped: list[BadSample]  # unreadable, or without a label that the model knows
    tta_views: int = 1  # of each sample, over which answers are averaged
    warnings: tuple[str, ...] = ()  # why the metrics may be inflated
    shared: bool = False  # multi-label with one softmax over all classes (softmax_shared): logits are log-probabilities

    @property
    def multilabel(self) -> bool:
        """Whether a sample may have several labels."""
        return self.labels.ndim == 2

    def top(self, stream: str, k: int) -> float:
        """Fraction of samples whose label is among the ``k`` most likely classes; of equal ones the first counts."""
        # scikit-learn's top_k_accuracy_score prefers the last of equal ones, unlike argmax in ``confusion``.
        order = np.argsort(-self.logits[stream], axis=1, kind="stable")[:, :k]
        return float((order == self.labels[:, None]).any(1).mean())

    def loss(self, stream: str) -> float:
        """Mean cross entropy in float64; multi-label: binary, averaged over classes, or of labels that share it."""
        scores = self.logits[stream].astype(np.float64)
        if self.shared:
            labels = self.labels / np.maximum(self.labels.sum(1, keepdims=True), 1)
            return float(-(scores * labels).sum(1).mean())
        if self.multilabel:
            return float((np.logaddexp(0, scores) - scores * self.labels).mean())
        scores = scores - scores.max(1, keepdims=True)
        own = np.take_along_axis(scores, self.labels[:, None], 1)[:, 0]
        return float((np.log(np.exp(scores).sum(1)) - own).mean())

    def confusion(self, stream: str) -> np.ndarray:
        """(classes, classes) counts: rows truth, columns answer."""
        return confusion_counts(self.labels, self.logits[stream].argmax(1), len(self.classes))

    def metrics(self, stream: str) -> dict[str, float]:
        """Accuracy, mean recall of the classes that occur, top-5 where there are more classes, and loss.

        Multi-label: mAP and loss.
        """
        if self.multilabel:
            return {"mAP": mean_average_precision(self.logits[stream], self.labels), "loss": self.loss(stream)}
        confusion = self.confusion(stream)
        samples = confusion.sum(1)
        recall = (confusion.diagonal() / np.maximum(samples, 1))[samples > 0]
        metrics = {"accuracy": self.top(stream, 1), "mean_recall": float(recall.mean())}
        if len(self.classes) > 5:
            metrics["top5"] = self.top(stream, 5)
        return {**metrics, "loss": self.loss(stream)}

    def __str__(self) -> str:
        rows = {stream: self.metrics(stream) for stream in self.logits}
        names, alone = list(next(iter(rows.values()))), len(rows) == 1
        table = [["" if alone else "stream", *(name.replace("_", " ") for name in names)]]
        for stream, metrics in rows.items():
            table.append(["" if alone else stream, *(f"{metrics[name]:.4f}" for name in names)])
        lines = [line.lstrip() if alone else line for line in aligned(table)]
        tta_views = f", {self.tta_views} views of each" if self.tta_views > 1 else ""
        skipped = ""
        if self.skipped:
            skipped = f", {len(self.skipped):,} skipped (first: {self.skipped[0].id}: {self.skipped[0].reason})"
        return "\n".join([*lines, "", f"{len(self.labels):,} samples{tta_views}{skipped}"])

    def details(self) -> str:
        """Metrics of each class, with the confusion matrix, of the first stream."""
        stream = next(iter(self.logits))
        if self.multilabel:
            return average_precision_text(average_precision_rows(self.logits[stream], self.labels, self.classes))
        return per_class_text(self.confusion(stream), self.classes)

    def record(self) -> dict[str, Any]:
        """Everything but the logits, for JSON."""
        streams: dict[str, dict[str, Any]] = {}
        for stream, logits in self.logits.items():
            streams[stream] = dict(self.metrics(stream))
            if self.multilabel:
                streams[stream]["per_class"] = average_precision_rows(logits, self.labels, self.classes)
            else:
                confusion = self.confusion(stream)
                streams[stream]["per_class"] = per_class_rows(confusion, self.classes)
                streams[stream]["confusion"] = confusion.tolist()
        return {
            "samples": len(self.labels),
            "skipped": len(self.skipped),
            "tta_views": self.tta_views,
            "classes": list(self.classes),
            "warnings": list(self.warnings),
            "results": streams,
        }


@writes("out")
def evaluate(
    weights: Weights,
    data: Data = None,
    *,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | None = None,
    classes: Any = None,
    tta_views: bool = True,
    average: Average = "probabilities",
    overrides: Mapping[str, Any] | Iterable[str] = (),
    compare: bool = False,
    out: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Answers:
    """Evaluate a fine-tuned model, own or published, on the labelled samples of ``data``.

    ``weights``: a run, of which the best weights by validation are loaded, or else the last; a weights file; or a
    model. Labels are matched by the names of the classes that the model was trained with; ``classes``: those names, or
    their number, where the checkpoint does not record them. ``tta_views``: average the probabilities or logits
    (``average``) over all views of each sample that its modality or source has. ``overrides``: options of modalities
    that differ from training, such as ``{"modalities.NAME.KEY": value}``. ``compare``: also read what a run was trained
    and validated with, and warn of samples that are among ``data``. ``out``: a JSON file for the metrics; by default
    beside the run. The others as in :func:`maemm.tasks.embed.run.embed`. Raises :class:`MaemmError`.
    """
    model = open_encoder(weights, **settings)
    if overrides:
        model = rebuilt(model, overrides)
    if model.head is None:
        name = "the model" if isinstance(weights, Model) else os.fspath(weights)
        raise MaemmError(f"{name} has no classifier to evaluate; fine-tune it (maemm finetune), or probe it")
    options = {k: v for k, v in (("source", source), ("list", list)) if v is not None}
    config = data_config(model.recipe, data, **options)
    opened = open_data(model.recipe, data, **options)
    if opened.classes is None and not some_labels(opened):
        raise MaemmError(NO_LABELS)
    labelled = Labelled(opened, _numbering(model, model.head.classes, opened.classes, classes))
    workers = config["workers"] if workers is None else workers
    losses = {getattr(objective, "loss", None) for objective in model.objectives.values()}
    shared = "softmax_shared" in losses
    multilabel = labelled.multilabel or shared or "sigmoid" in losses
    passes = Passes(model, labelled, multilabel=multilabel and not shared, average=average, on=tta_views)
    logits = passes.run(
        lambda source, embed: features(
            model,
            source,
            batch=batch,
            workers=workers,
            embed=embed,
            tta_views=passes.views_per_read,
            on_progress=on_progress,
        )
    )
    answers = _answers(logits, labelled, multilabel, passes.count, shared)
    if data is None and not options:
        answers = replace(answers, warnings=(OWN_DATA,))
    elif compare:
        test = next(iter(logits.values())) if passes.count == 1 else contents(model, labelled, workers=workers)
        answers = replace(answers, warnings=tuple(warnings_of(model, weights, test, workers=workers)))
    refresh_page(save_record(answers.record(), "evaluate", weights, out, bf16=model.bf16))
    return answers


def shared_with_training(run: str | os.PathLike, data: Data) -> Seen | None:
    """Samples of ``data`` that a run trained on, or that its weights were chosen by; see
    :func:`maemm.tasks.evaluate.seen.seen`.

    Reads the data once, without running the model.
    """
    model = open_model(run)
    workers = (model.recipe.get("data") or {}).get("workers") or 0
    return seen(model, run, contents(model, open_data(model.recipe, data), workers=workers), workers=workers)


def _numbering(model: Model, outputs: int, of_data: Any, requested: Any) -> Any:
    """The classes that number the labels: names in the order of the ``outputs`` of the head, or how many there are.

    Those of the model's recipe, or those ``requested``; where there are none, labels must be numbers of outputs, or
    ``of_data``, the classes of the data, as many as there are outputs.
    """
    own = (model.recipe.get("data") or {}).get("classes")
    if requested and isinstance(own, list) and (isinstance(requested, int) or list(requested) != own):
        raise MaemmError(f"data.classes are not those of the model, {value_text(own)}; leave data.classes out")
    if isinstance(own, list) and of_data is None:
        raise MaemmError(
            f"the labels are numbers, the model knows its classes by their names, {value_text(own)}; give data with "
            "such names: folders, a list, or a Dataset with classes"
        )
    classes = requested or own
    if classes is not None:
        size = classes if isinstance(classes, int) else len(classes)
        if size > outputs:
            raise MaemmError(f"data.classes are {size}, the model answers with {outputs}; leave the others out")
        return classes
    if of_data is not None and len(of_data) != outputs:
        raise MaemmError(
            f"the data have {len(of_data)} classes, the model answers with {outputs} and does not know their names; "
            "give data with all of them, or a list whose labels are the model's numbers"
        )
    return outputs


def _answers(
    logits: dict[str, Features], source: Labelled, multilabel: bool, tta_views: int, shared: bool = False
) -> Answers:
    first = next(iter(logits.values()))
    width = max(first.x.shape[1], source.count)
    labels = as_multilabel(first, width).labels if multilabel or first.multilabel else first.labels
    names = tuple(source.classes or ()) or tuple(str(i) for i in range(width))
    names += tuple(str(i) for i in range(len(names), width))
    scores = {name: part.x for name, part in logits.items()}
    if shared:
        scores = {name: _log_probabilities(x.astype(np.float64)) for name, x in scores.items()}
    return Answers(scores, labels, names, first.skipped, tta_views, shared=shared)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, classes) of one softmax over all classes."""
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
