"""Two views of each sample as training makes them: augmented and masked anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from maemm.contract import Modality, ModalityInput, Preprocessed, Source
from maemm.data.loader import Batch, Loader
from maemm.data.order import SequentialBatches
from maemm.model.model import Model
from maemm.model.pooling import mean_of_tokens
from maemm.tasks._shared.scoring import PerSampleRng

Pair = tuple[Batch, Batch]


def pairs(source: Source, modalities: dict[str, Modality], *, batch: int, workers: int, seed: int) -> Iterator[Pair]:
    """Every sample twice, augmented; samples that cannot be read in both are left out of neither."""
    order = SequentialBatches(len(source), batch)
    loaders = [
        Loader(source, modalities, order, seed=seed + view, workers=workers, augment=True, substitute=False)
        for view in (1, 2)
    ]
    yield from zip(*(one.batches(0, order.steps) for one in loaders), strict=True)


class ViewsOver:
    """Features of two views of the same samples, added up over batches."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.features: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}  # by modality: first, second

    def add(self, model: Model, pair: Pair) -> None:
        """Means of the tokens that each view leaves visible."""
        if not all(one.raw for one in pair):
            return
        both = [view_features(model, one, (self.seed, "view", number)) for number, one in enumerate(pair)]
        common = sorted(_whole(pair[0]) & _whole(pair[1]))
        places = [[one.rows.index(row) for row in common] for one in pair]
        for name in both[0]:
            first, second = (found[name][place] for found, place in zip(both, places, strict=True))
            good = np.isfinite(first).all(1) & np.isfinite(second).all(1)
            into = self.features.setdefault(name, ([], []))
            into[0].append(first[good])
            into[1].append(second[good])

    def found(self, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(m, D) of each view; empty where nothing was added."""
        some = self.features.get(name, ([], []))
        first, second = (np.concatenate(one) if one else np.zeros((0, width), np.float32) for one in some)
        return first, second


def _whole(batch: Batch) -> set[int]:
    """Rows of the samples that have all modalities."""
    lacking = {
        row for here in batch.present.values() for row, ok in zip(batch.rows, here.tolist(), strict=True) if not ok
    }
    return set(batch.rows) - lacking


def view_features(model: Model, batch: Batch, key: tuple[int | str, ...]) -> dict[str, np.ndarray]:
    """{modality: (B, D)} of one view, the mean over the plans of a sample where it has several."""
    rng = PerSampleRng([(*key, row) for row in batch.rows], key)
    preprocessed = model.preprocess(batch.raw, rng, batch.present)
    inputs = model.plan(preprocessed, rng)
    latents = model.encoder(inputs, model.modalities)
    return {
        name: _by_sample(mean_of_tokens(latents.tokens[name], [one.plan]), one, preprocessed[name])
        for name, one in inputs.items()
    }


def _by_sample(features: torch.Tensor, one: ModalityInput, preprocessed: Preprocessed | torch.Tensor) -> np.ndarray:
    features = features.float()
    if one.plan.rows is not None:
        rows: Sequence[int] | torch.Tensor = one.plan.rows
        sums = features.new_zeros(one.tokens.batch, features.shape[1]).index_add(0, rows, features)
        features = sums / torch.bincount(rows, minlength=len(sums)).clamp(min=1)[:, None]
    return features.cpu().numpy()
