"""Retrieval between two kinds of features of the same samples: whose sound is this picture's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.tta import TtaView
from maemm.model.model import Model
from maemm.tasks._shared.baselines import TRAINED, UNTRAINED, Show, untrained
from maemm.tasks._shared.features import Features, features
from maemm.tasks._shared.inputs import Weights, data_config, open_data, open_model

KS = (1, 5, 10)
_EQUAL = 1e-9  # cosines that differ by less are equal but for rounding


@dataclass(frozen=True)
class Ranks:
    """How well queries find their partners."""

    direction: str  # "audio -> image"
    samples: int
    recall: dict[int, float]  # share of the queries whose partner is among the first k
    median: float  # rank of the partner, 1 is best
    chance: dict[int, float]  # recall of a random order


@dataclass(frozen=True)
class Retrieval:
    """What :func:`retrieve` found: for every representation the ranks in both directions."""

    rows: dict[str, list[Ranks]]
    skipped: list[str]  # samples that could not be read

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": {name: [asdict(one) for one in some] for name, some in self.rows.items()},
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        lines = []
        for name, some in self.rows.items():
            for one in some:
                shares = "   ".join(
                    f"R@{k} {fraction:.3f} (chance {one.chance[k]:.3f})" for k, fraction in one.recall.items()
                )
                lines.append(f"{name:<12}{one.direction:<28}{shares}   median rank {one.median:g} of {one.samples:,}")
        return "\n".join(lines)


def ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(n, D) twice, row i of one belongs to row i of the other -> (n,) rank of the partner by cosine, from 1.

    Equal scores share the mean of their ranks: features that are all alike rank at chance, and a clip that is there
    twice counts neither for nor against.
    """
    if queries.shape != gallery.shape or queries.ndim != 2 or not len(queries):
        raise MaemmError(f"retrieval needs two tables of one shape, got {queries.shape} and {gallery.shape}")
    one, other = (np.asarray(x, np.float64) for x in (queries, gallery))
    one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (one, other))
    found = np.empty(len(one))
    for start in range(0, len(one), 1024):  # a part of the matrix at a time
        scores = one[start : start + 1024] @ other.T
        scores -= scores[np.arange(len(scores)), start + np.arange(len(scores))][:, None]
        found[start : start + 1024] = (scores > _EQUAL).sum(1) + ((abs(scores) <= _EQUAL).sum(1) + 1) / 2
    return found


def compare_pair(direction: str, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int] = KS) -> Ranks:
    """Recall at ``ks`` and the median rank of one direction."""
    found, n = ranks(queries, gallery), len(queries)
    recall = {k: float((found <= k).mean()) for k in ks}
    return Ranks(direction, n, recall, float(np.median(found)), {k: min(k / n, 1.0) for k in ks})


def retrieve(
    what: Weights,
    data: Any = None,
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
    **known: Any,
) -> Retrieval:
    """Both directions between two modalities (``pair``; default: the first two) of the samples of ``data``.

    Features are the means of each modality's own stream, nothing hidden. ``tta``: each sample's features are the mean
    of those of all its views, such as the frames of a clip, each of length 1. ``baselines`` adds the untrained network.
    Raises :class:`MaemmError` for a model of one modality and for data that cannot be read.
    """
    model = open_model(what, **known)
    pair = tuple(pair or [*model.modalities][:2])
    if len(pair) != 2 or any(name not in model.modalities for name in pair):
        raise MaemmError(
            f"retrieval is between two modalities of the model ({', '.join(model.modalities)}), not {', '.join(pair)}"
        )
    options = {k: v for k, v in (("source", source), ("list", list), ("workers", workers)) if v is not None}
    opened = open_data(model.recipe, data, **options)
    count = data_config(model.recipe, data, **options)["workers"]
    rows, skipped = {}, []
    for name, one in ((TRAINED, model), *(((UNTRAINED, untrained(model, seed)),) if baselines else ())):
        progress = show(name) if show else None
        found = features_of_views(one, opened, tta, batch=batch, workers=count, on_progress=progress)
        rows[name] = both_ways(found, pair)
        skipped = [f"{bad.id}: {bad.reason}" for bad in found[pair[0]].skipped]
    return Retrieval(rows, skipped)


def features_of_views(model: Model, source: Source, tta: bool, **options: Any) -> dict[str, Features]:
    """Features of every sample; with ``tta`` the mean over those of its views that can be read, of length 1 each.

    A sample of which no view can be read is left out.
    """
    if not tta:
        return features(model, source, **options)
    found = [features(model, TtaView(source, number), **options) for number in range(source.tta_views)]
    return {name: _mean_of_views([one[name] for one in found]) for name in found[0]}


def _mean_of_views(some: Sequence[Features]) -> Features:
    sums: dict[str, np.ndarray] = {}
    for one in some:
        length = np.linalg.norm(one.x, axis=1, keepdims=True)
        for id, row in zip(one.ids, one.x / np.maximum(length, 1e-12), strict=True):
            sums[id] = sums.get(id, 0.0) + row
    first: dict[str, tuple[Features, int]] = {}
    for one in some:
        for row, id in enumerate(one.ids):
            first.setdefault(id, (one, row))
    ids = [*sums]
    labels = np.stack([first[id][0].labels[first[id][1]] for id in ids])
    skipped = {bad.id: bad for one in some for bad in one.skipped if bad.id not in sums}
    return Features(np.stack([sums[id] for id in ids]), labels, ids, [*skipped.values()], classes=some[0].classes)


def both_ways(found: Mapping[str, Features], pair: Sequence[str]) -> Sequence[Ranks]:
    """[first -> second, second -> first]."""
    one, other = pair
    return [
        compare_pair(f"{one} -> {other}", found[one].x, found[other].x),
        compare_pair(f"{other} -> {one}", found[other].x, found[one].x),
    ]
