"""Nearest neighbours on frozen features, with the weights of Wu et al. 2018 (arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

import numpy as np
import torch

from maemm.data.labels import multi_hot
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import Table, tables

_QUERIES = 1024  # test samples that are compared with the whole training part at a time


def knn_accuracy(train: Features, test: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy on ``test`` (multi-label: mAP) of a weighted vote among the ``k`` nearest samples of ``train``.

    Features are z-scored; a neighbour of cosine similarity s weighs exp(s / temperature). Raises :class:`MaemmError`
    where the two do not make a task (see :func:`maemm.tasks._shared.tables.tables`).
    """
    train_table, test_table = tables(train, test)
    return test_table.metric(knn_scores(train_table, test_table, k=k, temperature=temperature))


def knn_scores(train: Table, test: Table, *, k: int = 20, temperature: float = 0.07, seed: int = 0) -> np.ndarray:
    """(n, classes) fraction of the votes. ``seed`` has no effect: nothing is random."""
    gallery, labels = _unit(train.x), torch.from_numpy(train.y)
    hot = multi_hot(labels, train.classes) if labels.ndim == 1 else labels.float()
    k, scores = min(k, len(gallery)), []
    for queries in _unit(test.x).split(_QUERIES):
        similarity, index = (queries @ gallery.T).topk(k)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # minus the largest: no overflow
        weight = weight / weight.sum(1, keepdim=True)
        scores.append((weight[:, None] @ hot[index]).squeeze(1))
    return torch.cat(scores).numpy()


def _unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1)
