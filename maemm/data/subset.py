"""Some samples of a source, as a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.rng import Rng


class Subset(Source):
    """The samples ``rows`` of ``source``, in that order: for folds, few labels, the rest of an interrupted pass."""

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray):
        self.source, self.rows = source, np.asarray(rows, np.int64)
        self.classes, self.multilabel, self.tta_views = source.classes, source.multilabel, source.tta_views

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.source.name(int(self.rows[index]))

    def read(self, index: int, rng: Rng) -> Sample:
        return self.source.read(int(self.rows[index]), rng)

    def read_ahead(self, indices: Sequence[int]) -> None:
        self.source.read_ahead([int(self.rows[index]) for index in indices])

    def paths(self, index: int) -> Mapping[str, str | os.PathLike[str]] | None:
        return self.source.paths(int(self.rows[index]))

    @property
    def shard_sizes(self) -> np.ndarray | None:
        sizes = self.source.shard_sizes
        if sizes is None or np.any(np.diff(self.rows) < 0):
            return None
        own = np.diff(np.searchsorted(self.rows, np.cumsum(sizes)), prepend=0)
        return own[own > 0]

    def label(self, index: int) -> Label | None:
        return self.source.label(int(self.rows[index]))

    def tta_view(self, index: int, number: int) -> Sample:
        return self.source.tta_view(int(self.rows[index]), number)

    def fingerprint(self) -> str:
        rows = hashlib.blake2b(self.rows.tobytes(), digest_size=8).hexdigest()
        return f"{self.source.fingerprint()}[{len(self)}:{rows}]"
