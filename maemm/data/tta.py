"""Several views of each sample, of which a classifier's answers are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Draw


class Viewed:
    """A modality in the worker whose batches hold ``count`` views of each sample, one behind the other."""

    def __init__(self, inner: Modality, count: int):
        self.inner, self.count = inner, count

    def load(self, raw: Any, draw: Any) -> list[dict[str, Any]]:
        views = self.inner.load_views(raw)
        return views * self.count if len(views) == 1 else views

    def collate(self, samples: list[list[dict[str, Any]]]) -> Any:
        return self.inner.collate([view for views in samples for view in views])


class View(Source):
    """A source whose samples are all read in the way ``number`` of ``source.views``."""

    def __init__(self, source: Source, number: int):
        self.source, self.number = source, number
        self.classes, self.several = source.classes, source.several

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, draw: Draw) -> Sample:
        return self.source.view(index, self.number)


def views_of(modalities: Mapping[str, Modality]) -> int:
    """How many views each sample gets. Raises :class:`MaemmError` where modalities have different numbers of them."""
    counts = {name: one.views for name, one in modalities.items() if one.views > 1}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MaemmError(f"modalities have different numbers of views ({said}); give them one number, or 1")
    return next(iter(counts.values()), 1)
