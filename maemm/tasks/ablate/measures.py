"""What is measured of every run: frozen features under one protocol, and what the log says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from maemm.contract import Source
from maemm.contract.rng import seeded
from maemm.data.folds import usual_count
from maemm.data.subset import Subset
from maemm.model.build import build_model
from maemm.model.measures import spectrum
from maemm.model.model import Model
from maemm.tasks._shared.baselines import RAW, TRAINED
from maemm.tasks._shared.inputs import evenly_spaced, open_data, some_labels, usual_device
from maemm.tasks._shared.run_files import read_run
from maemm.tasks.probe.compare import Protocol, Subject, compare

CLASSIFIERS = ("linear", "knn")  # protocols of maemm probe and maemm knn
LAST = 0.1  # fraction of the steps over which the final loss is a mean
_WORDS = {
    "linear": "linear: accuracy (several labels: mAP) of a logistic regression with an L2 penalty on z-scored "
    "features, its C chosen among six inside the training part (as maemm probe)",
    "knn": "kNN: accuracy (or mAP) of 20 neighbours, cosine of z-scored features, votes exp(s / 0.07) (as maemm knn)",
    "rank": "effective rank: exponential of the entropy of the singular values of the centred features (Roy and "
    "Vetterli 2007)",
}


class Measurer:
    """Measures frozen features of runs of one comparison, all on the same samples.

    ``recipe``: of the reference. ``data``: to fit classifiers on, None: the training data of the recipe; ``test``: to
    test on, None: folds of ``data``. ``samples``: at most so many of either part, at regular intervals. ``names``: of
    linear, knn and rank. Raises :class:`MaemmError` where the data cannot be opened.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        names: Sequence[str],
        *,
        data: str | os.PathLike | None = None,
        test: str | os.PathLike | None = None,
        samples: int | None = None,
    ):
        self.recipe, self.data, self.test, self.samples = dict(recipe), data, test, samples
        self.notes: list[str] = []
        self.names = tuple(dict.fromkeys(names))
        if self.names and data is None and (recipe["data"].get("mix") or {}):
            self._leave_out(self.names, "several data sets are trained on: give one to measure features on (--probe)")
        if set(CLASSIFIERS) & {*self.names} and not self._labelled():
            self._leave_out(CLASSIFIERS, "the data have no labels")

    def _leave_out(self, names: Sequence[str], reason: str) -> None:
        left = [name for name in self.names if name in names]
        self.names = tuple(name for name in self.names if name not in left)
        self.notes.append(f"not measured: {', '.join(left)} ({reason})")

    def _labelled(self) -> bool:
        return all(some_labels(part) for part in self.parts(self.recipe) if part is not None)

    def parts(self, recipe: Mapping[str, Any]) -> tuple[Source, Source | None]:
        """(training part, test part or None), opened as a recipe says."""
        train = self._some(open_data(recipe, self.data))
        # A list names the samples of the training part.
        own = {**recipe, "data": {**recipe["data"], "list": None}}
        return train, None if self.test is None else self._some(open_data(own, self.test))

    def _some(self, source: Source) -> Source:
        if self.samples is None or self.samples >= len(source):
            return source
        return Subset(source, evenly_spaced(len(source), self.samples))

    def protocol(self) -> dict[str, Any]:
        """What the results depend on beside the weights, for JSON."""
        keys = {"data": self.data, "test": self.test}
        paths = {key: None if path is None else os.fspath(path) for key, path in keys.items()}
        return {"measures": [*self.names], **paths, "samples": self.samples}

    def words(self) -> list[str]:
        """The protocol, in words."""
        if not self.names:
            return []
        of = "the training data" if self.data is None else os.fspath(self.data)
        some = "" if self.samples is None else f", at most {self.samples:,} samples of a part"
        split = (
            f"{usual_count(None)} folds of {of}"
            if self.test is None
            else f"fitted on {of}, tested on {os.fspath(self.test)}"
        )
        rank = "" if self.test is None else " of the test part"
        lines = [_WORDS[name] + (rank if name == "rank" else "") for name in self.names]
        return [*lines, f"features: mean over tokens of the frozen encoder, nothing hidden; {split}{some}"]

    def of(self, weights: Path | Model) -> dict[str, float]:
        """{measure: value} of a run or a model; of several modalities ``measure (modality)``."""
        return self._measured(weights, TRAINED) if self.names else {}

    def untrained(self, seed: int) -> dict[str, float]:
        """:meth:`of` the reference before its first step, with the weights that this seed draws."""
        with seeded(seed, "weights"):
            model = build_model(self.recipe)
        return self.of(model.to(usual_device()).eval())

    def raw(self) -> dict[str, float]:
        """The values that the model is given, as if they were features. Raises :class:`MaemmError` without a length."""
        with seeded(0, "weights"):
            model = build_model(self.recipe)
        return self._measured(model.to(usual_device()).eval(), RAW) if self.names else {}

    def _measured(self, weights: Path | Model, kind: str) -> dict[str, float]:
        recipe = weights.recipe if isinstance(weights, Model) else read_run(weights).recipe
        train, test = self.parts(recipe)
        subject = Subject(weights, train, test, keep=False)
        values: dict[str, float] = {}
        names = [name for name in CLASSIFIERS if name in self.names]
        if names:
            comparison = compare(subject, Protocol(names, seeds=1), kinds=(kind,))
            for cell in comparison.cells:
                values[_title(cell.protocol, cell.features.partition(", ")[2])] = cell.mean
            for note in [*comparison.warnings, *comparison.notes]:
                if note not in self.notes:
                    self.notes.append(note)
        if "rank" in self.names:
            train_features, test_features = subject.features(kind, 0, False)
            features = train_features if test_features is None else test_features
            for modality, part in features.items():
                values[_title("rank", modality if len(features) > 1 else "")] = spectrum(part.x).effective_rank
        return values


def _title(measure: str, modality: str) -> str:
    return f"{measure} ({modality})" if modality else measure


def of_log(folder: Path) -> dict[str, float]:
    """What metrics.jsonl of a run says: ``loss``, the mean over the last tenth of the steps; ``validation``, the last
    loss; ``seconds_per_step``, the median of the lines; ``parameters``; on a GPU ``memory``, bytes at most."""
    run = read_run(folder)
    values: dict[str, float] = {}
    steps, losses = run.column("loss")
    if steps:
        last = [loss for step, loss in zip(steps, losses, strict=True) if step > (1 - LAST) * steps[-1]]
        values["loss"] = mean(last)
    rates = [
        batch / rate for batch, rate in zip(run.column("batch")[1], run.column("samples_per_second")[1], strict=False)
    ]
    if rates:
        values["seconds_per_step"] = median(rates)
    for name, column in (("validation", "validation.loss"), ("parameters", "parameters")):
        value = run.last(column)
        if value is not None:
            values[name] = value
    return values


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """(steps, losses) of a run."""
    return read_run(folder).column("loss")
