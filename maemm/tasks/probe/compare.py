"""Features of a trained network beside its baselines (raw values, the untrained network) under the same protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.folds import groups_of, split_folds, usual_count
from maemm.data.shots import Shots
from maemm.tasks._shared.baselines import RAW, TRAINED, UNTRAINED, Show, untrained
from maemm.tasks._shared.cache import cached, folder_for
from maemm.tasks._shared.comparison import Cell, Comparison
from maemm.tasks._shared.embedding import embedder, features, raw_values
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import Data, Weights, data_config, data_stamp, open_data, open_encoder, weights_stamp
from maemm.tasks._shared.tables import Choice, tables
from maemm.tasks.probe.linear import l2_c_choice, logistic_scores
from maemm.tasks.probe.neighbours import knn_scores
from maemm.tasks.probe.trained import attentive_choice, attentive_scores, published_choice, published_scores


class Classifier(NamedTuple):
    """A protocol: how a classifier is fitted on frozen features."""

    scores: Callable[..., np.ndarray]  # (train, test, *, seed, **options) -> (n, classes)
    choose: Callable[..., Choice | None] | None = None  # (train, *, seed, **options) -> an option of ``scores``
    scale: bool = False  # z-score the features
    tokens: bool = False  # needs the features of tokens: there are none of raw values
    random: bool = True  # whether it depends on a seed, for the same training part


PROTOCOLS = {
    "knn": Classifier(knn_scores, scale=True, random=False),
    "linear": Classifier(logistic_scores, l2_c_choice, scale=True),
    "published": Classifier(published_scores, published_choice),
    "attentive": Classifier(attentive_scores, attentive_choice, tokens=True),
}


@dataclass(frozen=True)
class Protocol:
    """Which classifiers are fitted, on which parts of the data."""

    names: Sequence[str] = ("linear",)  # of :data:`PROTOCOLS`
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
            raise MaemmError(f"{self.seeds} seeds give no metrics (--seeds); give 1 or more")


@dataclass
class _Data:
    """A source and what its features depend on."""

    source: Source
    stamp: str | None  # None: nothing tells whether the same data come again, so their features are not kept
    workers: int


class Subject:
    """What is compared: a model, its data, and how it is embedded.

    ``weights``: a run or checkpoint folder, a weights file, or a model. ``data`` None: the data of its recipe;
    ``source``, ``list``, ``workers``: in place of those in the recipe's ``data``. ``pool``, ``norm``, ``layers``: see
    :meth:`Model.embed`. ``keep``: whether features stay on the disk. ``settings``: see
    :func:`maemm.tasks._shared.inputs.open_model`. Raises :class:`MaemmError`.
    """

    def __init__(
        self,
        weights: Weights,
        data: Data,
        test: Data = None,
        *,
        pool: str | None = None,
        norm: str | None = None,
        layers: Sequence[int] | None = None,
        batch: int = 64,
        workers: int | None = None,
        source: Any = None,
        list: str | None = None,
        show: Show | None = None,
        keep: bool = True,
        **settings: Any,
    ):
        self.keep = keep
        self.model = open_encoder(weights, **settings)
        self.folder, self.batch, self.show = folder_for(weights), batch, show or (lambda kind: None)
        self.embed_options: dict[str, Any] = {"pool": pool, "norm": norm, "layers": layers}
        self._last: Any = None
        options = {k: v for k, v in (("source", source), ("list", list), ("workers", workers)) if v is not None}
        self.train = self._open(data, options)
        self.test = None if test is None else self._open(test, {k: v for k, v in options.items() if k != "list"})

    def _open(self, data: Data, options: dict[str, Any]) -> _Data:
        config = data_config(self.model.recipe, data, **options)
        source = open_data(self.model.recipe, data, **options)
        stamp = None
        if self.keep and not isinstance(data, Dataset):
            stamp = data_stamp(source, config["root"], config["list"])
        return _Data(source, stamp, config["workers"])

    def features(self, kind: str, seed: int, tokens: bool) -> tuple[dict[str, Features], dict[str, Features] | None]:
        """Features of the data and of the test part, by modality; from the cache where they are there.

        ``kind``: :data:`RAW`, :data:`UNTRAINED` (with fresh weights by ``seed``) or :data:`TRAINED`.
        """
        if self._last is None or self._last[0] != (kind, seed, tokens):
            self._last = (kind, seed, tokens), self._features(kind, seed, tokens)
        return self._last[1]

    def _features(self, kind: str, seed: int, tokens: bool) -> tuple[dict[str, Features], dict[str, Features] | None]:
        model = self.model if kind != UNTRAINED else untrained(self.model, seed)
        embed = raw_values if kind == RAW else embedder(**self.embed_options, tokens=tokens)
        how = "raw" if kind == RAW else [weights_stamp(model), self.embed_options, tokens, *["bf16"] * model.bf16]
        # Raw values depend on the options of the modalities alone.
        about = [how, self.model.recipe.get("modalities") if kind == RAW else None]

        def compute(data: _Data) -> dict[str, Features]:
            show = self.show(kind)
            return features(model, data.source, batch=self.batch, workers=data.workers, embed=embed, on_progress=show)

        def load_or_compute(data: _Data) -> dict[str, Features]:
            if data.stamp is None:
                return compute(data)
            return cached(self.folder, [about, data.stamp], lambda: compute(data))

        return load_or_compute(self.train), None if self.test is None else load_or_compute(self.test)


def compare(
    subject: Subject, protocol: Protocol, *, baselines: bool = False, kinds: Sequence[str] | None = None
) -> Comparison:
    """Every kind of features under every protocol, with all seeds, folds and numbers of labels.

    ``kinds``: of features (see :meth:`Subject.features`), by default the trained ones, with ``baselines`` all. All
    rows see the same splits. Raises :class:`MaemmError` where data and labels do not make a task.
    """
    comparison = Comparison(shots=list(protocol.shots) or ["all"], seeds=protocol.seeds)
    for kind in kinds or ((RAW, UNTRAINED, TRAINED) if baselines else (TRAINED,)):
        for name in protocol.names:
            if kind == RAW and PROTOCOLS[name].tokens:
                continue
            try:
                _add_cells(comparison, subject, protocol, kind, name)
            except MaemmError as error:
                if kind != RAW or "no vector of one length" not in str(error):
                    raise
                comparison.notes.append(f"no row of raw values: {error}")
    return comparison


def _add_cells(comparison: Comparison, subject: Subject, protocol: Protocol, kind: str, name: str) -> None:
    """The cells of one kind of features under one protocol: one by modality and number of labels."""
    cells: dict[tuple[str, str], Cell] = {}
    for seed in range(protocol.seeds):
        data, test = subject.features(kind, seed if kind == UNTRAINED else 0, PROTOCOLS[name].tokens)
        for modality, samples in data.items():
            title = kind if len(data) == 1 else f"{kind}, {modality}"
            pairs = _split(samples, None if test is None else test[modality], protocol, seed, comparison)
            for shots in comparison.shots:
                drawn = shots != "all" or kind == UNTRAINED or PROTOCOLS[name].random
                drawn = drawn or (test is None and not _is_group_each(samples, protocol, pairs))
                fixed = protocol.seeds > 1 and not drawn
                cell = cells.setdefault((title, shots), Cell(title, name, shots, fixed=fixed))
                if fixed and seed:  # it would be the same again
                    continue
                cell.values.append([_fit(cell, *pair, protocol, name, shots, seed) for pair in pairs])
    comparison.cells += cells.values()
    comparison.notes += [note for cell in cells.values() for note in cell.notes() if note not in comparison.notes]


def _split(
    data: Features, test: Features | None, protocol: Protocol, seed: int, comparison: Comparison
) -> list[tuple[Features, Features]]:
    """(training part, test part) of each fold, or the only pair where a test part is given."""
    if test is not None and (protocol.folds is not None or protocol.groups is not None):
        raise MaemmError("folds and a test part are both given (--folds, --groups, --test); choose one")
    comparison.describe_data(data, test)
    if test is not None:
        return [(data, test)]
    labelled = data.labelled
    if not len(labelled):
        raise MaemmError(
            "the data have no labels; give all files in a folder per class, or a list or array with labels"
        )
    groups = None if protocol.groups is None else groups_of(labelled.ids, protocol.groups)
    comparison.folds = protocol.folds or usual_count(groups)
    folds = split_folds(labelled.labels, comparison.folds, seed=seed, groups=groups)
    return [(labelled.select(train), labelled.select(test)) for train, test in folds]


def _is_group_each(samples: Features, protocol: Protocol, folds: Sequence[Any]) -> bool:
    """Whether every fold is a group, so that the folds are the same for each seed."""
    if protocol.groups is None:
        return False
    return len(np.unique(groups_of(samples.labelled.ids, protocol.groups))) == len(folds)


def _fit(cell: Cell, train: Features, test: Features, protocol: Protocol, name: str, shots: str, seed: int) -> float:
    """Fit on ``train`` and -> accuracy or mAP on ``test``; the answers of seed 0 are added to the cell."""
    if shots != "all":
        train = train.select(Shots.parse(shots).choose(train.labels, seed, train.classes))
    classifier, options = PROTOCOLS[name], protocol.options.get(name, {})
    train_table, test_table = tables(train, test, scale=classifier.scale)
    if classifier.choose and (choice := classifier.choose(train_table, seed=seed, **options)) is not None:
        cell.choices.append(choice)
        options = {**options, choice.option: choice.value}
    scores = classifier.scores(train_table, test_table, seed=seed, **options)
    if seed == 0:
        cell.add(test_table.y, scores, train.classes, train_table.classes)
    return test_table.metric(scores)
