"""``maemm knn`` as a function: the probe with nearest neighbours as its protocol."""

from __future__ import annotations

from typing import Any

from maemm.tasks._shared.comparison import Comparison
from maemm.tasks._shared.inputs import Data, Weights
from maemm.tasks.probe.run import probe


def knn(weights: Weights, data: Data = None, *, k: int = 20, temperature: float = 0.07, **options: Any) -> Comparison:
    """Classify by the ``k`` nearest neighbours of frozen features; ``options`` as in :func:`probe`."""
    return probe(weights, data, protocols=["knn"], k=k, temperature=temperature, verb="knn", **options)
