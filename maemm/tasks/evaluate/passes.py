"""Test-time augmentation: a classifier answers for several views of each sample, and the answers are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Preprocessed, Source
from maemm.data.tta import TtaView, tta_views_of
from maemm.model.model import Model
from maemm.tasks._shared.embedding import Embed
from maemm.tasks._shared.features import Features

Average = Literal["probabilities", "logits"]
_SMALLEST = 1e-12  # probability, so that its logarithm is finite


class Passes:
    """How often a source is read, and how many views come of each read.

    The views of a modality come from one read of the sample, those of a source (frames of a clip) from a pass each.
    ``multilabel``: the probability of each class is a sigmoid, not part of a softmax. ``on`` False: one view.
    """

    def __init__(self, model: Model, source: Source, *, multilabel: bool, average: Average, on: bool = True):
        self.source, self.multilabel, self.average = source, multilabel, average
        self.views_per_read = tta_views_of(model.modalities) if on else 1
        self.reads = source.tta_views if on else 1

    @property
    def count(self) -> int:
        """Views of each sample."""
        return self.views_per_read * self.reads

    def run(self, embed_source: Callable[[Source, Embed], dict[str, Features]]) -> dict[str, Features]:
        """Averaged logits by stream, of the samples of which every view can be read.

        ``embed_source(source, embed)`` reads a source once and returns the features that ``embed`` gives.
        """
        if self.reads == 1:
            return embed_source(self.source, self._logits)
        return self._averaged([embed_source(TtaView(self.source, i), self._logits) for i in range(self.reads)])

    def _logits(self, model: Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        """{stream: (B, classes)} of a batch with ``views_per_read`` neighbouring rows for each of B samples."""
        logits = model.logits(batch)
        streams = logits if isinstance(logits, dict) else {"logits": logits}
        if self.views_per_read == 1:
            return streams
        return {name: self.mean(x.float().unflatten(0, (-1, self.views_per_read)), 1) for name, x in streams.items()}

    def mean(self, logits: Tensor, axis: int) -> Tensor:
        """Logits of the average over ``axis``, float32 where probabilities are averaged."""
        if self.average == "logits":
            return logits.mean(axis)
        logits = logits.double()
        if self.multilabel:
            return torch.logit(logits.sigmoid().mean(axis), eps=_SMALLEST).float()
        return logits.softmax(-1).mean(axis).clamp(min=_SMALLEST).log().float()

    def _averaged(self, passes: list[dict[str, Features]]) -> dict[str, Features]:
        bad = {sample.index: sample for streams in passes for part in streams.values() for sample in part.skipped}
        skipped = [bad[index] for index in sorted(bad)]
        averaged = {}
        for name, first in passes[0].items():
            rows = [_rows(streams[name], len(self.source)) for streams in passes]
            complete = np.logical_and.reduce([row >= 0 for row in rows])
            x = torch.stack(
                [torch.from_numpy(streams[name].x[row[complete]]) for streams, row in zip(passes, rows, strict=True)]
            )
            averaged[name] = replace(first.select(rows[0][complete]), x=self.mean(x, 0).numpy(), skipped=skipped)
        return averaged


def _rows(features: Features, total: int) -> np.ndarray:
    """(total,) int64: the row of each sample of the source, -1 where it was skipped."""
    skipped = {bad.index for bad in features.skipped}
    rows = np.full(total, -1, np.int64)
    rows[[index for index in range(total) if index not in skipped]] = np.arange(len(features))
    return rows
