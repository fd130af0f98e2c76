"""Several views of each sample, of which a classifier's answers are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng


class TtaModality:
    """A modality in the worker whose batches hold ``count`` views of each sample, one behind the other."""

    def __init__(self, inner: Modality, count: int):
        self.inner, self.count = inner, count

    def load(self, raw: Any, rng: Any) -> list[dict[str, Any]]:
        tta_views = self.inner.load_tta_views(raw)
        return tta_views * self.count if len(tta_views) == 1 else tta_views

    def collate(self, samples: list[list[dict[str, Any]]]) -> Any:
        return self.inner.collate([view for tta_views in samples for view in tta_views])


class TtaView(Source):
    """A source whose samples are all read in the way ``number`` of ``source.tta_views``."""

    def __init__(self, source: Source, number: int):
        self.source, self.number = source, number
        self.classes, self.multilabel = source.classes, source.multilabel

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        return self.source.tta_view(index, self.number)


def tta_views_of(modalities: Mapping[str, Modality]) -> int:
    """How many views each sample gets. Raises :class:`MaemmError` where modalities have different numbers of them."""
    counts = {name: one.tta_views for name, one in modalities.items() if one.tta_views > 1}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MaemmError(f"modalities have different numbers of views ({said}); give them one number, or 1")
    return next(iter(counts.values()), 1)
