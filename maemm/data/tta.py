"""Test-time augmentation: several views of each sample, over which a classifier's outputs are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng


class TtaModality:
    """Wraps a modality in the worker so that batches hold ``count`` views of each sample, one after the other."""

    side_inputs: Sequence[str] = ()  # classifiers need none ...
    whole_samples = False  # ... so that nothing is asked of how samples are read

    def __init__(self, inner: Modality, count: int):
        self.inner, self.count = inner, count

    def load(self, raw: Any, rng: Any) -> list[dict[str, Any]]:
        tta_views = self.inner.load_tta_views(raw)
        return tta_views * self.count if len(tta_views) == 1 else tta_views

    def collate(self, samples: list[list[dict[str, Any]]]) -> Any:
        return self.inner.collate([view for tta_views in samples for view in tta_views])


class TtaView(Source):
    """A source that reads view ``number`` of each sample, of ``source.tta_views``."""

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
    """Views per sample. Raises :class:`MaemmError` where modalities have different numbers of views (1 fits all)."""
    counts = {name: modality.tta_views for name, modality in modalities.items() if modality.tta_views > 1}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MaemmError(f"modalities have different numbers of views ({listed}); give them the same number, or 1")
    return next(iter(counts.values()), 1)
