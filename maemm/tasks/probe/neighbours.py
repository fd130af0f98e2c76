"""Nearest neighbours on frozen features, with the weights of Wu et al. 2018 (arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

import numpy as np
import torch

from maemm.data.labels import multi_hot
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import Table, tables

_QUERIES = 1024  # compared with all of the training part at a time


def knn(train: Features, test: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy on ``test`` of a vote among the ``k`` nearest of ``train``: z-scored, cosine, exp(s / temperature).

    mAP where samples may have several labels. Raises :class:`MaemmError` where the two do not make a task (see
    :func:`maemm.tasks._shared.tables.tables`).
    """
    a, b = tables(train, test)
    return b.metric(knn_scores(a, b, k=k, temperature=temperature))


def knn_scores(train: Table, test: Table, *, k: int = 20, temperature: float = 0.07, seed: int = 0) -> np.ndarray:
    """(n, classes) share of the vote. ``seed`` changes nothing: there is nothing to draw."""
    known, labels = _unit(train.x), torch.from_numpy(train.y)
    hot = multi_hot(labels, train.classes) if labels.ndim == 1 else labels.float()
    k, found = min(k, len(known)), []
    for part in _unit(test.x).split(_QUERIES):
        similarity, index = (part @ known.T).topk(k)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # the factor cancels, and nothing overflows
        weight = weight / weight.sum(1, keepdim=True)
        found.append((weight[:, None] @ hot[index]).squeeze(1))
    return torch.cat(found).numpy()


def _unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1)
