"""A classifier asked about several views of each sample; its answers are averaged."""

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
from maemm.tasks._shared.features import Embed, Features

Average = Literal["probabilities", "logits"]
_LEAST = 1e-12  # of a probability, so that its logarithm is finite


class Passes:
    """How often a source is read and how many views come of each read.

    A modality's views come from one read of the sample, those of a source (frames of a clip) from a pass each.
    ``multilabel``: probabilities are those of each class alone.
    """

    def __init__(self, model: Model, source: Source, *, multilabel: bool, average: Average, on: bool = True):
        self.source, self.multilabel, self.average = source, multilabel, average
        self.loaded = tta_views_of(model.modalities) if on else 1
        self.read = source.tta_views if on else 1

    @property
    def count(self) -> int:
        """Views of each sample."""
        return self.loaded * self.read

    def run(self, ask: Callable[[Source, Embed], dict[str, Features]]) -> dict[str, Features]:
        """Logits by stream; ``ask(source, embed)`` goes through a source once. A sample counts whose every view can
        be read."""
        if self.read == 1:
            return ask(self.source, self._logits)
        return self._joined([ask(TtaView(self.source, number), self._logits) for number in range(self.read)])

    def _logits(self, model: Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        found = model.logits(batch)
        found = found if isinstance(found, dict) else {"logits": found}
        if self.loaded == 1:
            return found
        return {name: self.mean(one.float().unflatten(0, (-1, self.loaded)), 1) for name, one in found.items()}

    def mean(self, logits: Tensor, axis: int) -> Tensor:
        """Logits of the average over ``axis``."""
        if self.average == "logits":
            return logits.mean(axis)
        logits = logits.double()
        if self.multilabel:
            return torch.logit(logits.sigmoid().mean(axis), eps=_LEAST).float()
        return logits.softmax(-1).mean(axis).clamp(min=_LEAST).log().float()

    def _joined(self, passes: list[dict[str, Features]]) -> dict[str, Features]:
        first, found = passes[0], {}
        lost = {bad.index: bad for one in passes for some in one.values() for bad in some.skipped}
        for name, some in first.items():
            places = [_places(one[name], len(self.source)) for one in passes]
            shared = np.logical_and.reduce([place >= 0 for place in places])
            x = torch.stack([torch.from_numpy(one[name].x[at[shared]]) for one, at in zip(passes, places, strict=True)])
            kept = some.select(places[0][shared])
            skipped = [lost[index] for index in sorted(lost)]
            found[name] = replace(kept, x=self.mean(x, 0).numpy(), skipped=skipped)
        return found


def _places(found: Features, total: int) -> np.ndarray:
    """(total,) int64: the row of each sample of the source, -1 where it was skipped."""
    bad = {one.index for one in found.skipped}
    places = np.full(total, -1, np.int64)
    places[[index for index in range(total) if index not in bad]] = np.arange(len(found))
    return places
