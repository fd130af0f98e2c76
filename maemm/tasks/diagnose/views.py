"""Features of two views of each sample: augmented and masked independently, as in training."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Source
from maemm.data.loader import Batch, Loader
from maemm.data.order import SequentialBatches
from maemm.model.model import Model
from maemm.model.pooling import mean_of_tokens
from maemm.model.precision import float32
from maemm.tasks._shared.scoring import PerSampleRng

Pair = tuple[Batch, Batch]


def load_pairs(
    source: Source, modalities: dict[str, Modality], *, batch: int, workers: int, seed: int
) -> Generator[Pair, None, None]:
    """Batches of two views of the same samples. Samples that cannot be read are left out of a view, not replaced."""
    order = SequentialBatches(len(source), batch)
    loaders = [
        Loader(source, modalities, order, seed=seed + view, workers=workers, augment=True, substitute=False)
        for view in (1, 2)
    ]
    yield from zip(*(loader.batches(0, order.steps) for loader in loaders), strict=True)


class ViewFeatures:
    """Accumulates features of two views over batches: ``measure`` each, then ``add`` them."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.features: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}  # {modality: (first, second view)}

    def measure(self, model: Model, pair: Pair) -> list[dict[str, Tensor]]:
        """Features of both views; ``pair`` is on the device of the model."""
        return [view_features(model, batch, (self.seed, "view", number)) for number, batch in enumerate(pair)]

    def add(self, pair: Pair, features: list[dict[str, Tensor]]) -> None:
        """Add the samples that both views have, with all modalities and finite features; all on the host."""
        views = [{name: x.numpy() for name, x in view.items()} for view in features]
        common = sorted(_complete(pair[0]) & _complete(pair[1]))
        positions = [[batch.rows.index(row) for row in common] for batch in pair]
        for name in views[0]:
            first, second = views[0][name][positions[0]], views[1][name][positions[1]]
            finite = np.isfinite(first).all(1) & np.isfinite(second).all(1)
            lists = self.features.setdefault(name, ([], []))
            lists[0].append(first[finite])
            lists[1].append(second[finite])

    def result(self, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(m, D) of each view; (0, ``width``) where nothing was added."""
        first, second = (
            np.concatenate(batches) if batches else np.zeros((0, width), np.float32)
            for batches in self.features.get(name, ([], []))
        )
        return first, second


def _complete(batch: Batch) -> set[int]:
    """Rows of the samples that have all modalities."""
    incomplete = {
        row
        for present in batch.present.values()
        for row, has_modality in zip(batch.rows, present.tolist(), strict=True)
        if not has_modality
    }
    return set(batch.rows) - incomplete


def view_features(model: Model, batch: Batch, key: tuple[int | str, ...]) -> dict[str, Tensor]:
    """{modality: (B, D)} of one view: the mean over visible tokens, and over the plans of a sample with several."""
    rng = PerSampleRng([(*key, row) for row in batch.rows], key)
    inputs = model.plan(model.preprocess(batch.raw, rng, batch.present, batch.side_inputs), rng)
    with model.autocast():
        latents = float32(model.encoder(inputs, model.modalities))
    return {name: _by_sample(mean_of_tokens(latents.tokens[name], [x.plan]), x) for name, x in inputs.items()}


def _by_sample(features: Tensor, inputs: ModalityInput) -> Tensor:
    """(R, D) of plans -> (B, D) of samples."""
    features, rows = features.float(), inputs.plan.rows
    if rows is None:
        return features
    sums = features.new_zeros(inputs.tokens.batch, features.shape[1]).index_add(0, rows, features)
    counts = features.new_zeros(len(sums)).index_add(0, rows, features.new_ones(len(rows)))
    return sums / counts.clamp(min=1)[:, None]
