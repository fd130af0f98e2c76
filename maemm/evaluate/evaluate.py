"""``maemm evaluate``: a fine-tuned model asked about labelled data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maemm.contract import Prepared
from maemm.data.bad_samples import BadSample
from maemm.data.labels import Labelled
from maemm.data.once import Progress
from maemm.errors import MaemmError
from maemm.evaluate.features import Features, features
from maemm.evaluate.figures import aligned, details, per_class, save_record
from maemm.evaluate.inputs import What, data_config, open_data, open_model
from maemm.model import Model
from maemm.train.validation import BEST


@dataclass(frozen=True)
class Answers:
    """What a classifier said."""

    logits: dict[str, np.ndarray]  # by stream, (n, classes)
    labels: np.ndarray  # (n,)
    classes: tuple[str, ...]
    skipped: list[BadSample]  # unreadable, or without a label that the model knows

    def top(self, stream: str, k: int) -> float:
        """Share of samples whose label is among the ``k`` most likely; of equal ones the first counts."""
        order = np.argsort(-self.logits[stream], axis=1, kind="stable")[:, :k]
        return float((order == self.labels[:, None]).any(1).mean())

    def loss(self, stream: str) -> float:
        """Mean cross entropy."""
        scores = self.logits[stream].astype(np.float64)
        scores = scores - scores.max(1, keepdims=True)
        own = np.take_along_axis(scores, self.labels[:, None], 1)[:, 0]
        return float((np.log(np.exp(scores).sum(1)) - own).mean())

    def confusion(self, stream: str) -> np.ndarray:
        """(classes, classes) counts: truth down, answer across."""
        table = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(table, (self.labels, self.logits[stream].argmax(1)), 1)
        return table

    def figures(self, stream: str) -> dict[str, float]:
        """Accuracy, mean recall of the classes that occur, top-5 where there are more classes, and loss."""
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
        rows = {stream: self.figures(stream) for stream in self.logits}
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
        return "\n".join([*lines, "", f"{len(self.labels):,} samples{skipped}"])

    def details(self) -> str:
        """Table per class and confusions of the first stream."""
        return details(self.confusion(next(iter(self.logits))), self.classes)

    def record(self) -> dict[str, Any]:
        """Everything but the logits, as JSON knows it."""
        streams = {}
        for stream in self.logits:
            table = self.confusion(stream)
            rows = {"per_class": per_class(table, self.classes), "confusion": table.tolist()}
            streams[stream] = {**self.figures(stream), **rows}
        return {
            "samples": len(self.labels),
            "skipped": len(self.skipped),
            "classes": list(self.classes),
            "results": streams,
        }


def evaluate(
    what: What,
    data: str | os.PathLike | None = None,
    *,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | None = None,
    classes: Any = None,
    out: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
    **known: Any,
) -> Answers:
    """Ask a fine-tuned model, own or published, about the labelled samples of ``data``.

    Of a run the best weights of its validation are taken, where there were any, else the last. Labels are matched by
    the names of the classes that the model was trained with. ``classes``: those names, or their number, where the
    weights do not tell. The rest as in :func:`maemm.evaluate.embed.embed`. Raises :class:`MaemmError`.
    """
    model = open_model(best_of(what), **known)
    if model.head is None:
        raise MaemmError(f"{_name(what)} has no classifier to evaluate; fine-tune it (maemm finetune), or probe it")
    options = {k: v for k, v in (("source", source), ("list", list)) if v is not None}
    config = data_config(model.recipe, data, **options)
    opened = open_data(model.recipe, data, **options)
    names = classes or (model.recipe.get("data") or {}).get("classes")
    opened = Labelled(opened, _classes(model, opened.classes, names))
    workers = config["workers"] if workers is None else workers
    found = features(model, opened, batch=batch, workers=workers, embed=_logits, on_progress=on_progress)
    answers = _answers(found, opened)
    save_record(answers.record(), "evaluate", what, out)
    return answers


def best_of(what: What) -> What:
    """The weights of a run that validated best, where it validated."""
    if isinstance(what, Model):
        return what
    best = Path(what) / BEST / "model.safetensors"
    return best if best.is_file() else what


def _name(what: What) -> str:
    return "the model" if isinstance(what, Model) else os.fspath(what)


def _classes(model: Model, given: Any, known: Any) -> Any:
    """The numbering of the labels: the model's own names, or, where it has none, that of the data if it can be its."""
    count = model.head.classes
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


def _logits(model: Model, batch: dict[str, Prepared]) -> dict[str, Tensor]:
    found = model.logits(batch)
    return found if isinstance(found, dict) else {"logits": found}


def _answers(found: dict[str, Features], source: Labelled) -> Answers:
    one = next(iter(found.values()))
    width = max(one.x.shape[1], source.count)
    names = tuple(source.classes or ()) or tuple(str(i) for i in range(width))
    names += tuple(str(i) for i in range(len(names), width))
    return Answers({name: some.x for name, some in found.items()}, one.labels, names, one.skipped)
