"""Retrieval between two modalities of the same samples: which sound belongs to this picture?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.tta import TtaView
from maemm.model.model import Model
from maemm.tasks._shared.baselines import TRAINED, UNTRAINED, Show, untrained
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import Data, Weights, data_config, open_data, open_encoder

KS = (1, 5, 10)
_EQUAL = 1e-9  # a difference between cosines that is rounding


@dataclass(frozen=True)
class Ranks:
    """How well queries find their partners."""

    direction: str  # "audio -> image"
    samples: int
    recall: dict[int, float]  # fraction of the queries whose partner is among the first k
    median: float  # rank of the partner, 1 is best
    chance: dict[int, float]  # recall of a random order


@dataclass(frozen=True)
class Retrieval:
    """The ranks of every representation, in both directions."""

    rows: dict[str, Sequence[Ranks]]  # by representation, one for each direction
    skipped: Sequence[BadSample]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": {name: [asdict(ranks) for ranks in directions] for name, directions in self.rows.items()},
            "skipped": len(self.skipped),
            "bad_samples": [asdict(bad) for bad in self.skipped],
        }

    def __str__(self) -> str:
        lines = []
        for name, directions in self.rows.items():
            for row in directions:
                recalls = "   ".join(
                    f"R@{k} {recall:.3f} (chance {row.chance[k]:.3f})" for k, recall in row.recall.items()
                )
                lines.append(f"{name:<12}{row.direction:<28}{recalls}   median rank {row.median:g} of {row.samples:,}")
        return "\n".join(lines)


def ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(n, D) twice, row i of both of the same sample -> (n,) float64 rank of the partner by cosine similarity, from 1.

    Equal scores share the mean of their ranks: features that are all alike rank at chance, and a sample that occurs
    twice counts neither for nor against. Raises :class:`MaemmError` for tables that differ in shape.
    """
    if queries.shape != gallery.shape or queries.ndim != 2 or not len(queries):
        raise MaemmError(f"retrieval needs two tables of one shape, got {queries.shape} and {gallery.shape}")
    queries, gallery = (np.asarray(x, np.float64) for x in (queries, gallery))
    queries, gallery = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, gallery))
    rank = np.empty(len(queries))
    for start in range(0, len(queries), 1024):  # a part of the matrix at a time
        scores = queries[start : start + 1024] @ gallery.T
        scores -= scores[np.arange(len(scores)), start + np.arange(len(scores))][:, None]
        rank[start : start + 1024] = (scores > _EQUAL).sum(1) + ((abs(scores) <= _EQUAL).sum(1) + 1) / 2
    return rank


def compare_pair(direction: str, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int] = KS) -> Ranks:
    """Recall at ``ks`` and the median rank of one direction."""
    rank, n = ranks(queries, gallery), len(queries)
    recall = {k: float((rank <= k).mean()) for k in ks}
    return Ranks(direction, n, recall, float(np.median(rank)), {k: min(k / n, 1.0) for k in ks})


def retrieve(
    weights: Weights,
    data: Data = None,
    *,
    pair: Sequence[str] | None = None,
    tta: bool = False,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | None = None,
    baselines: bool = False,
    seed: int = 0,
    show: Show | None = None,
    **settings: Any,
) -> Retrieval:
    """Retrieval in both directions between two modalities of ``data`` (``pair``; default: the first two).

    Features are the means of each modality's own stream, nothing hidden. ``tta``: the mean over all views of a sample,
    such as the frames of a clip, each normalised to length 1. ``baselines`` adds the untrained network, by ``seed``.
    ``show(kind)`` gives an ``on_progress`` for a kind of features. Others as in :func:`maemm.tasks.embed.run.embed`.
    Raises :class:`MaemmError` for a model of one modality and for data that cannot be read.
    """
    model = open_encoder(weights, **settings)
    pair = tuple(pair or [*model.modalities][:2])
    if len(pair) != 2 or any(name not in model.modalities for name in pair):
        raise MaemmError(
            f"retrieval is between two modalities of the model ({', '.join(model.modalities)}), not {', '.join(pair)}"
        )
    options = {k: v for k, v in (("source", source), ("list", list), ("workers", workers)) if v is not None}
    opened = open_data(model.recipe, data, **options)
    count = data_config(model.recipe, data, **options)["workers"]
    rows: dict[str, Sequence[Ranks]] = {}
    skipped: Sequence[BadSample] = []
    models = {TRAINED: model, **({UNTRAINED: untrained(model, seed)} if baselines else {})}
    for kind, network in models.items():
        progress = show(kind) if show else None
        by_modality = features_of_views(network, opened, tta, batch=batch, workers=count, on_progress=progress)
        rows[kind] = both_ways(by_modality, pair)
        skipped = by_modality[pair[0]].skipped
    return Retrieval(rows, skipped)


def features_of_views(model: Model, source: Source, tta: bool, **options: Any) -> dict[str, Features]:
    """Features of every sample; ``tta``: the mean over its views that can be read, each normalised to length 1.

    A sample of which no view can be read is left out. ``options``: see :func:`maemm.tasks._shared.embedding.features`.
    """
    if not tta:
        return features(model, source, **options)
    views = [features(model, TtaView(source, number), **options) for number in range(source.tta_views)]
    return {name: _mean_of_views([view[name] for view in views]) for name in views[0]}


def _mean_of_views(views: Sequence[Features]) -> Features:
    sums: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for view in views:
        length = np.linalg.norm(view.x, axis=1, keepdims=True)
        for id, row, label in zip(view.ids, view.x / np.maximum(length, 1e-12), view.labels, strict=True):
            sums[id] = sums.get(id, 0.0) + row
            labels.setdefault(id, label)
    skipped = {bad.id: bad for view in views for bad in view.skipped if bad.id not in sums}
    x, y = np.stack([*sums.values()]), np.stack([*labels.values()])
    return Features(x, y, [*sums], [*skipped.values()], classes=views[0].classes)


def both_ways(features: Mapping[str, Features], pair: Sequence[str]) -> Sequence[Ranks]:
    """[first -> second, second -> first]."""
    first, second = pair
    return [
        compare_pair(f"{first} -> {second}", features[first].x, features[second].x),
        compare_pair(f"{second} -> {first}", features[second].x, features[first].x),
    ]
