"""A representation beside its baselines under one protocol: raw values, the untrained network, the trained one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.tasks._shared import splits
from maemm.tasks._shared.baselines import RAW, TRAINED, UNTRAINED, Show, untrained
from maemm.tasks._shared.cache import cached, folder_for
from maemm.tasks._shared.comparison import Cell, Comparison
from maemm.tasks._shared.features import Embed, Features, embedder, features, raw_values
from maemm.tasks._shared.inputs import Weights, data_config, data_stamp, open_data, open_model, weights_stamp
from maemm.tasks._shared.tables import Choice, tables
from maemm.tasks.probe.linear import l2_c_choice, logistic_scores
from maemm.tasks.probe.neighbours import knn_scores
from maemm.tasks.probe.trained import attentive_choice, attentive_scores, published_choice, published_scores

PROTOCOLS: dict[str, Callable[..., np.ndarray]] = {
    "knn": knn_scores,
    "linear": logistic_scores,
    "published": published_scores,
    "attentive": attentive_scores,
}
CHOICES: dict[str, Callable[..., Choice | None]] = {  # what is chosen inside the training part before it is fitted
    "linear": l2_c_choice,
    "published": published_choice,
    "attentive": attentive_choice,
}


@dataclass(frozen=True)
class Protocol:
    """Which parts of the data are learned from, and how."""

    names: Sequence[str] = ("linear",)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by name
    folds: int | None = None  # without a test part; None: 5
    groups: str | None = None
    shots: Sequence[str] = ()
    seeds: int = 3

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in PROTOCOLS:
                raise MaemmError(f"unknown protocol {name!r}; choose {', '.join(PROTOCOLS)}")
        if self.seeds < 1:
            raise MaemmError(f"{self.seeds} seeds give no figure (--seeds); give 1 or more")


@dataclass
class _Data:
    """A source and what its features depend on."""

    source: Source
    stamp: str
    workers: int


class Subject:
    """What is compared: a model, its data, and how it is embedded."""

    def __init__(
        self,
        what: Weights,
        data: str | os.PathLike | None,
        test: str | os.PathLike | None = None,
        *,
        pool: str | None = None,
        norm: str | None = None,
        layers: Sequence[int] | None = None,
        batch: int = 64,
        workers: int | None = None,
        source: Any = None,
        list: str | None = None,
        show: Show | None = None,
        **known: Any,
    ):
        self.model = open_model(what, **known)
        self.folder, self.batch, self.show = folder_for(what), batch, show or (lambda what: None)
        self._last: Any = None
        self.chosen = {"pool": pool, "norm": norm, "layers": layers}
        options = {k: v for k, v in (("source", source), ("list", list), ("workers", workers)) if v is not None}
        self.train = self._data(data, options)
        self.test = None if test is None else self._data(test, {k: v for k, v in options.items() if k != "list"})

    def _data(self, data: str | os.PathLike | None, options: dict[str, Any]) -> _Data:
        config = data_config(self.model.recipe, data, **options)
        source = open_data(self.model.recipe, data, **options)
        return _Data(source, data_stamp(source, config["root"], config["list"]), config["workers"])

    def both(self, kind: str, seed: int, tokens: bool) -> tuple[dict[str, Features], dict[str, Features] | None]:
        """Features of the data and of the test part, from the cache where they are there."""
        if self._last is None or self._last[0] != (kind, seed, tokens):
            self._last = (kind, seed, tokens), self._both(kind, seed, tokens)
        return self._last[1]

    def _both(self, kind: str, seed: int, tokens: bool) -> tuple[dict[str, Features], dict[str, Features] | None]:
        model = self.model if kind != UNTRAINED else untrained(self.model, seed)
        embed = raw_values if kind == RAW else embedder(**self.chosen, tokens=tokens)
        how = "raw" if kind == RAW else [weights_stamp(model), self.chosen, tokens]
        # What a sample's raw values are follows from its modality's options.
        about = [how, self.model.recipe.get("modalities") if kind == RAW else None]

        def of(data: _Data) -> dict[str, Features]:
            return cached(self.folder, [about, data.stamp], lambda: self._embedded(kind, model, data, embed))

        return of(self.train), None if self.test is None else of(self.test)

    def _embedded(self, kind: str, model: Model, data: _Data, embed: Embed) -> dict[str, Features]:
        show = self.show(kind)
        return features(model, data.source, batch=self.batch, workers=data.workers, embed=embed, on_progress=show)


def compare(subject: Subject, protocol: Protocol, *, baselines: bool = False) -> Comparison:
    """Every kind of features under every protocol, with all seeds, folds and numbers of labels.

    All rows see the same splits. Raises :class:`MaemmError` where data and labels do not make a task.
    """
    found = Comparison(shots=list(protocol.shots) or ["all"], seeds=protocol.seeds)
    for kind in (RAW, UNTRAINED, TRAINED) if baselines else (TRAINED,):
        for name in protocol.names:
            if kind == RAW and name == "attentive":
                continue
            try:
                _row(subject, protocol, kind, name, found)
            except MaemmError as error:
                if kind != RAW or "no vector of one length" not in str(error):
                    raise
                found.notes.append(f"no row of raw values: {error}")
    return found


def _row(subject: Subject, protocol: Protocol, kind: str, name: str, found: Comparison) -> None:
    cells: dict[tuple[str, str], Cell] = {}
    for seed in range(protocol.seeds):
        data, test = subject.both(kind, seed if kind == UNTRAINED else 0, name == "attentive")
        for modality, one in data.items():
            title = kind if len(data) == 1 else f"{kind}, {modality}"
            pairs = _pairs(one, None if test is None else test[modality], protocol, seed, found)
            for shots in found.shots:
                cell = cells.setdefault((title, shots), Cell(title, name, shots))
                cell.values.append([_figure(cell, part, protocol, name, shots, seed) for part in pairs])
    found.cells += cells.values()
    found.notes += [note for cell in cells.values() for note in cell.notes() if note not in found.notes]


def _pairs(
    data: Features, test: Features | None, protocol: Protocol, seed: int, found: Comparison
) -> list[tuple[Features, Features]]:
    """(training part, test part) for each fold, or the only one."""
    if test is not None:
        if protocol.folds is not None or protocol.groups is not None:
            raise MaemmError("folds and a test part are both given (--folds, --groups, --test); choose one")
        found.tell(data, test)
        return [(data, test)]
    found.tell(data, None)
    known = data.labelled
    if not len(known):
        raise MaemmError(
            "the data have no labels; give all files in a folder per class, or a list or array with labels"
        )
    groups = None if protocol.groups is None else splits.groups_of(known.ids, protocol.groups)
    count = protocol.folds or splits.usual_count(groups)
    found.folds = count
    return [(known.select(a), known.select(b)) for a, b in splits.folds(known, count, seed=seed, groups=groups)]


def _figure(cell: Cell, pair: tuple[Features, Features], protocol: Protocol, name: str, shots: str, seed: int) -> float:
    """Accuracy or mAP of one fit; its answers go into the cell's table per class."""
    train, test = pair
    if shots != "all":
        train = train.select(splits.Shots.parse(shots).choose(train.labels, seed, train.classes))
    a, b = tables(train, test, scale=name in ("knn", "linear"))
    options = protocol.options.get(name, {})
    if name in CHOICES and (choice := CHOICES[name](a, seed=seed, **options)) is not None:
        cell.choices.append(choice)
        options = {**options, choice.option: choice.value}
    scores = PROTOCOLS[name](a, b, seed=seed, **options)
    if seed == 0:
        cell.add(b.y, scores, train.classes, a.classes)
    return b.metric(scores)
