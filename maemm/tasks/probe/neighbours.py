"""Nearest neighbours on frozen features (:func:`maemm.model.probes.neighbour_votes`)."""

from __future__ import annotations

import numpy as np
import torch

from maemm.data.labels import multi_hot
from maemm.model.probes import neighbour_votes
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import Table, tables


def knn_accuracy(train: Features, test: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy on ``test`` (multi-label: mAP) of a weighted vote among the ``k`` nearest samples of ``train``.

    Features are z-scored; a neighbour of cosine similarity s weighs exp(s / temperature). Raises :class:`MaemmError`
    where the two do not make a task (see :func:`maemm.tasks._shared.tables.tables`).
    """
    train_table, test_table = tables(train, test)
    return test_table.metric(knn_scores(train_table, test_table, k=k, temperature=temperature))


def knn_scores(train: Table, test: Table, *, k: int = 20, temperature: float = 0.07, seed: int = 0) -> np.ndarray:
    """(n, classes) fraction of the votes. ``seed`` has no effect: nothing is random."""
    labels = torch.from_numpy(train.y)
    hot = multi_hot(labels, train.classes) if labels.ndim == 1 else labels
    return neighbour_votes(train.x, hot.numpy(), test.x, k=k, temperature=temperature)
