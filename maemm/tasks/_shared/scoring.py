"""Reconstruction error as a score: how badly a model predicts each token of each sample when it is hidden.

What was rare in training is predicted badly, so the score finds odd samples, and the tokens show where.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import ModalityInput, Plan, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.bad_samples import BadSample
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.model.build import build_modalities
from maemm.model.model import Model
from maemm.tasks._shared.features import evaluating

MORE = 4  # times as many plans are drawn at most, until every token was hidden once
NOT_FINITE = "the score is not a finite number"


@dataclass(frozen=True)
class Scores:
    """Reconstruction errors of n samples, in the unit of the modality's own loss."""

    samples: np.ndarray  # (n,) float64: mean over tokens; of several modalities, the mean of their means
    tokens: np.ndarray  # (n, N) float32, in the modality's token order; NaN: padded, or never hidden
    ids: list[str]
    labels: np.ndarray  # (n,) int64, -1 where a sample has none
    skipped: list[BadSample] = field(default_factory=list)  # unreadable, or without a finite score
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)  # {modality: its columns in ``tokens``}
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) of the samples in the source
    classes: Sequence[str] | None = None  # names of the labels

    def __len__(self) -> int:
        return len(self.samples)

    def worst(self, count: int) -> np.ndarray:
        """Places of the ``count`` highest scores, the highest first."""
        return np.argsort(-self.samples, kind="stable")[:count]


class PerSampleRng(Rng):
    """Numbers for the rows of a batch of which each has a key of its own, so that neighbours change nothing."""

    def __init__(self, keys: Sequence[tuple[int | str, ...]], common: tuple[int | str, ...]):
        super().__init__(common, range(len(keys)), len(keys))
        object.__setattr__(self, "keys", tuple(keys))

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        return torch.cat([Rng(key).uniform(purpose, *shape) for key in self.keys])

    def fold_in(self, *more: int | str) -> PerSampleRng:
        return PerSampleRng([(*key, *more) for key in self.keys], (*self.key, *more))


def score_samples(
    model: Model,
    source: Source,
    *,
    plans: int = 4,
    batch: int = 64,
    workers: int = 0,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Scores:
    """Score every sample of ``source``, read once without augmentation.

    ``plans`` are drawn for each sample from the model's own masking, by ``seed`` and the sample's index alone, and
    more (up to four times as many) for samples of which some token was never hidden. A token's error is the mean over
    the plans that hid it, a sample's score the mean over its tokens. The model works where its weights are, in eval
    mode. Raises :class:`MaemmError` for a model without a decoder, and where no sample gets a score.
    """
    if model.decoder is None:
        raise MaemmError("score needs a decoder, and these weights hold an encoder only; load a file with one")
    if plans < 1:
        raise MaemmError(f"plans is {plans}; draw at least 1 for each sample")
    parts = build_modalities(model.recipe) if workers else dict(model.modalities)
    loaded = each(source, parts, batch=batch, workers=workers, seed=seed, on_progress=on_progress)
    device = next(model.parameters()).device
    pieces: list[_Piece] = []
    skipped: list[BadSample] = []
    with closing(loaded), evaluating(model):
        for one in loaded:
            skipped += one.bad
            if one.raw:
                pieces.append(_piece(model, one.to(device), plans, seed))
    return _joined(pieces, skipped, source)


# ------------------------------------------------------------------------------------------------ one batch
@dataclass(frozen=True)
class _Piece:
    batch: Batch
    errors: dict[str, np.ndarray]  # {modality: (B, N) float64}


def _piece(model: Model, batch: Batch, plans: int, seed: int) -> _Piece:
    preprocessed = model.preprocess(batch.raw, None)
    sums: dict[str, _Sums] = {}
    for number in range(plans * (1 + MORE)):
        keys = [(seed, "score", index, number) for index in batch.rows]
        inputs = model.plan(preprocessed, PerSampleRng(keys, (seed, "score", number)))
        if not sums:
            sums = {name: _Sums(one) for name, one in inputs.items()}
        if number >= plans:
            open_rows = torch.stack([one.open() for one in sums.values()]).any(0)
            if not open_rows.any():
                break
            inputs = {name: _only(one, open_rows) for name, one in inputs.items()}
        loss = model.predict(inputs).loss
        for name, one in inputs.items():
            sums[name].add(one.plan, loss[name])
    return _Piece(batch, {name: one.mean() for name, one in sums.items()})


def _only(planned: ModalityInput, samples: Tensor) -> ModalityInput:
    """The plans of some of the samples: (B,) bool."""
    plan = planned.plan
    rows = torch.arange(len(plan.visible), device=samples.device) if plan.rows is None else plan.rows
    taken = samples[rows]
    cut = {name: None if value is None else value[taken] for name, value in vars(plan).items() if name != "rows"}
    return ModalityInput(planned.tokens, Plan(**cut, rows=rows[taken]), planned.preprocessed)


class _Sums:
    """Errors of the tokens of one batch, added up over plans."""

    def __init__(self, planned: ModalityInput):
        tokens = planned.tokens
        self.sum = torch.zeros(tokens.batch, tokens.count, dtype=torch.float64, device=tokens.values.device)
        self.weight = torch.zeros_like(self.sum)
        self.valid = torch.ones_like(self.sum, dtype=torch.bool) if tokens.valid is None else tokens.valid

    def add(self, plan: Plan, loss: Tensor) -> None:
        rows = torch.arange(len(plan.predict), device=loss.device) if plan.rows is None else plan.rows
        place = rows[:, None].expand_as(plan.predict), plan.predict
        counted = plan.counted.double()
        errors = loss.double().nan_to_num(nan=torch.inf, posinf=torch.inf)  # NaN stands for "not known" here
        self.sum.index_put_(place, torch.where(counted > 0, errors * counted, 0.0), accumulate=True)
        self.weight.index_put_(place, counted, accumulate=True)

    def open(self) -> Tensor:
        """(B,) bool: samples with a token that was never hidden."""
        return ((self.weight == 0) & self.valid).any(1)

    def mean(self) -> np.ndarray:
        """(B, N), NaN for padding and for tokens that were never hidden."""
        known = self.valid & (self.weight > 0)
        return torch.where(known, self.sum / self.weight.clamp(min=1e-12), torch.nan).cpu().numpy()


# ------------------------------------------------------------------------------------------------ all batches
def _joined(pieces: list[_Piece], skipped: list[BadSample], source: Source) -> Scores:
    if not pieces:
        first = f" (first: {skipped[0].id}: {skipped[0].reason})" if skipped else ""
        raise MaemmError(f"none of {len(source):,} samples can be read{first}; give other data")
    tokens, spans, start = [], {}, 0
    for name in pieces[0].errors:
        width = max(one.errors[name].shape[1] for one in pieces)
        tokens.append(np.concatenate([_padded(one.errors[name], width) for one in pieces]))
        spans[name] = start, start + width
        start += width
    samples = np.mean([_row_means(one) for one in tokens], axis=0)
    found: dict[str, Any] = {
        "ids": [id for one in pieces for id in one.batch.ids],
        "labels": np.concatenate([_labels(one.batch) for one in pieces]),
        "indices": np.array([row for one in pieces for row in one.batch.rows], np.int64),
        "tokens": np.concatenate(tokens, axis=1).astype(np.float32),
    }
    good = np.isfinite(samples)
    bad = [BadSample(int(found["indices"][i]), found["ids"][i], NOT_FINITE) for i in np.flatnonzero(~good)]
    if not good.any():
        raise MaemmError(f"none of {len(source):,} samples has a finite score; check the data and the weights")
    kept = {name: [one for one, ok in zip(some, good, strict=True) if ok] for name, some in found.items()}
    arrays = {name: np.stack(kept[name]) for name in ("labels", "indices", "tokens")}
    skipped = sorted(skipped + bad, key=lambda one: one.index)
    return Scores(samples[good], ids=kept["ids"], skipped=skipped, spans=spans, classes=source.classes, **arrays)


def _padded(errors: np.ndarray, width: int) -> np.ndarray:
    return np.pad(errors, ((0, 0), (0, width - errors.shape[1])), constant_values=np.nan)


def _row_means(errors: np.ndarray) -> np.ndarray:
    """Mean over the known tokens; a token with an infinite or undefined error makes its sample's mean so."""
    known = ~np.isnan(errors)
    total = np.where(known, errors, 0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(errors), np.nan), where=known.any(1))


def _labels(batch: Batch) -> np.ndarray:
    """One label each; a sample that may have several has none here."""
    if batch.labels is None or batch.labels.ndim > 1:
        return np.full(len(batch.ids), -1)
    return batch.labels.cpu().numpy()
