"""``maemm evaluate``: a fine-tuned model asked about labelled data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from maemm.config.messages import value_text
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.labels import Labelled
from maemm.data.single_pass import Progress
from maemm.model.metrics import mean_average_precision
from maemm.model.model import Model
from maemm.tasks._shared.comparison import details, per_class, precision_table, precisions
from maemm.tasks._shared.features import Features, contents, features
from maemm.tasks._shared.inputs import Data, Weights, data_config, open_data, open_model
from maemm.tasks._shared.records import refresh_page, save_record
from maemm.tasks._shared.tables import as_multilabel
from maemm.tasks.evaluate.passes import Passes
from maemm.tasks.evaluate.seen import Seen, seen, warnings_of
from maemm.ui.text import aligned
from maemm.weights import rebuilt

OWN_DATA = "no data are named: the figures are of the run's own, which it has learned from; name the data to test with"


@dataclass(frozen=True)
class Answers:
    """What a classifier said."""

    logits: dict[str, np.ndarray]  # by stream, (n, classes)
    labels: np.ndarray  # (n,); (n, classes) of 0 and 1 where samples may have several
    classes: tuple[str, ...]
    skipped: list[BadSample]  # unreadable, or without a label that the model knows
    tta_views: int = 1  # of each sample, over which answers are averaged
    warnings: tuple[str, ...] = ()  # why the figures may be too good

    @property
    def multilabel(self) -> bool:
        """Whether samples may have several labels."""
        return self.labels.ndim == 2

    def top(self, stream: str, k: int) -> float:
        """Share of samples whose label is among the ``k`` most likely; of equal ones the first counts."""
        order = np.argsort(-self.logits[stream], axis=1, kind="stable")[:, :k]
        return float((order == self.labels[:, None]).any(1).mean())

    def loss(self, stream: str) -> float:
        """Mean cross entropy; binary, averaged over classes, where samples may have several labels."""
        scores = self.logits[stream].astype(np.float64)
        if self.multilabel:
            return float((np.logaddexp(0, scores) - scores * self.labels).mean())
        scores = scores - scores.max(1, keepdims=True)
        own = np.take_along_axis(scores, self.labels[:, None], 1)[:, 0]
        return float((np.log(np.exp(scores).sum(1)) - own).mean())

    def confusion(self, stream: str) -> np.ndarray:
        """(classes, classes) counts: truth down, answer across."""
        table = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(table, (self.labels, self.logits[stream].argmax(1)), 1)
        return table

    def metrics(self, stream: str) -> dict[str, float]:
        """Accuracy, mean recall of the classes that occur, top-5 where there are more classes, and loss.

        Where samples may have several labels: mAP and loss.
        """
        if self.multilabel:
            return {"mAP": mean_average_precision(self.logits[stream], self.labels), "loss": self.loss(stream)}
        table = self.confusion(stream)
        occurs = table.sum(1) > 0
        found = {
            "accuracy": self.top(stream, 1),
            "mean_recall": float((table.diagonal() / np.maximum(table.sum(1), 1))[occurs].mean()),
        }
        if len(self.classes) > 5:
            found["top5"] = self.top(stream, 5)
        return {**found, "loss": self.loss(stream)}

    def __str__(self) -> str:
        rows = {stream: self.metrics(stream) for stream in self.logits}
        names = list(next(iter(rows.values())))
        head = ["" if len(rows) == 1 else "stream", *(name.replace("_", " ") for name in names)]
        body = [
            [stream if len(rows) > 1 else "", *(f"{one[name]:.4f}" for name in names)] for stream, one in rows.items()
        ]
        skipped = (
            f", {len(self.skipped):,} skipped (first: {self.skipped[0].id}: {self.skipped[0].reason})"
            if self.skipped
            else ""
        )
        lines = [line.lstrip() if len(rows) == 1 else line for line in aligned([head, *body])]
        tta_views = f", {self.tta_views} views of each" if self.tta_views > 1 else ""
        return "\n".join([*lines, "", f"{len(self.labels):,} samples{tta_views}{skipped}"])

    def details(self) -> str:
        """Table per class, and confusions, of the first stream."""
        first = next(iter(self.logits))
        if self.multilabel:
            return precision_table(precisions(self.logits[first], self.labels, self.classes))
        return details(self.confusion(first), self.classes)

    def record(self) -> dict[str, Any]:
        """Everything but the logits, as JSON knows it."""
        streams = {}
        for stream in self.logits:
            if self.multilabel:
                rows = {"per_class": precisions(self.logits[stream], self.labels, self.classes)}
            else:
                table = self.confusion(stream)
                rows = {"per_class": per_class(table, self.classes), "confusion": table.tolist()}
            streams[stream] = {**self.metrics(stream), **rows}
        return {
            "samples": len(self.labels),
            "skipped": len(self.skipped),
            "tta_views": self.tta_views,
            "classes": list(self.classes),
            "warnings": list(self.warnings),
            "results": streams,
        }


def evaluate(
    what: Weights,
    data: Data = None,
    *,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | None = None,
    classes: Any = None,
    tta_views: bool = True,
    average: Literal["probabilities", "logits"] = "probabilities",
    overrides: Mapping[str, Any] | Iterable[str] = (),
    compare: bool = False,
    out: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
    **known: Any,
) -> Answers:
    """Ask a fine-tuned model, own or published, about the labelled samples of ``data``.

    Of a run the best weights of its validation are taken, where there were any, else the last. Labels are matched by
    the names of the classes that the model was trained with. ``classes``: those names, or their number, where the
    weights do not tell. ``tta_views``: ask about all views of each sample that its modality or source has, and average
    the probabilities or logits (``average``). ``overrides``: other options of modalities than in training, such as
    ``{"modalities.NAME.KEY": value}``, for views that the weights do not tell. ``compare``: also read what a run was
    trained and validated with, and warn of samples that are among ``data``. The rest as in
    :func:`maemm.tasks.embed.run.embed`. Raises :class:`MaemmError`.
    """
    model = open_model(what, **known)
    if overrides:
        model = rebuilt(model, overrides)
    if model.head is None:
        raise MaemmError(f"{_name(what)} has no classifier to evaluate; fine-tune it (maemm finetune), or probe it")
    options = {k: v for k, v in (("source", source), ("list", list)) if v is not None}
    config = data_config(model.recipe, data, **options)
    opened = open_data(model.recipe, data, **options)
    opened = Labelled(opened, _classes(model, opened.classes, classes))
    workers = config["workers"] if workers is None else workers
    multilabel = opened.multilabel or _sigmoid(model)
    passes = Passes(model, opened, multilabel=multilabel, average=average, on=tta_views)
    found = passes.run(
        lambda source, embed: features(
            model, source, batch=batch, workers=workers, embed=embed, tta_views=passes.loaded, on_progress=on_progress
        )
    )
    answers = _answers(found, opened, multilabel, passes.count)
    if data is None and not options:
        answers = replace(answers, warnings=(OWN_DATA,))
    elif compare:
        test = next(iter(found.values())) if passes.count == 1 else contents(model, opened, workers=workers)
        answers = replace(answers, warnings=tuple(warnings_of(model, what, test, workers=workers)))
    refresh_page(save_record(answers.record(), "evaluate", what, out))
    return answers


def shared_with_training(run: str | os.PathLike, data: Data) -> Seen | None:
    """Samples of ``data`` that a run has learned from, or that chose its weights; see
    :func:`maemm.tasks.evaluate.seen.seen`.

    Reads the data once more, without the model.
    """
    model = open_model(run)
    workers = (model.recipe.get("data") or {}).get("workers") or 0
    return seen(model, run, contents(model, open_data(model.recipe, data), workers=workers), workers=workers)


def _name(what: Weights) -> str:
    return "the model" if isinstance(what, Model) else os.fspath(what)


def _classes(model: Model, given: Any, told: Any) -> Any:
    """The numbering of the labels: the model's own names, or, where it has none, those told, or that of the data if it
    can be its."""
    count, own = model.head.classes, (model.recipe.get("data") or {}).get("classes")
    if told and isinstance(own, list) and (isinstance(told, int) or list(told) != own):
        raise MaemmError(f"data.classes are not those of the model, {value_text(own)}; leave data.classes out")
    known = told or own
    if known is not None:
        size = known if isinstance(known, int) else len(known)
        if size > count:
            raise MaemmError(f"data.classes are {size}, the model answers with {count}; leave the others out")
        return known
    if given is not None and len(given) != count:
        raise MaemmError(
            f"the data have {len(given)} classes, the model answers with {count} and does not know their names; give "
            "data with all of them, or a list whose labels are the model's numbers"
        )
    return count


def _sigmoid(model: Model) -> bool:
    """Whether the model was trained to tell any number of labels."""
    return any(getattr(one, "loss", None) == "sigmoid" for one in model.objectives.values())


def _answers(found: dict[str, Features], source: Labelled, multilabel: bool, tta_views: int) -> Answers:
    one = next(iter(found.values()))
    width = max(one.x.shape[1], source.count)
    labels = as_multilabel(one, width).labels if multilabel or one.multilabel else one.labels
    names = tuple(source.classes or ()) or tuple(str(i) for i in range(width))
    names += tuple(str(i) for i in range(len(names), width))
    return Answers({name: some.x for name, some in found.items()}, labels, names, one.skipped, tta_views)
