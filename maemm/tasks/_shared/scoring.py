"""Reconstruction error as a score: how badly a model predicts each token of each sample when it is hidden.

What was rare in training is predicted badly, so the score finds odd samples, and the tokens show where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
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
from maemm.data.transfer import Work, overlapped, to_device
from maemm.model.model import Model
from maemm.tasks._shared.embedding import evaluating, reading_modalities
from maemm.tasks._shared.features import complete

MORE = 4  # times as many further plans are drawn at most, until every token was hidden once
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
        """Indices of the ``count`` highest scores, the highest first."""
        return np.argsort(-self.samples, kind="stable")[:count]


class PerSampleRng(Rng):
    """Random numbers for a batch whose rows have a key each: a sample's numbers do not depend on its neighbours."""

    keys: tuple[tuple[int | str, ...], ...]

    def __init__(self, keys: Sequence[tuple[int | str, ...]], common: tuple[int | str, ...]):
        super().__init__(common, range(len(keys)), len(keys))
        object.__setattr__(self, "keys", tuple(keys))

    def row_states(self, purpose: str) -> list[int]:
        return [state for key in self.keys for state in Rng(key).row_states(purpose)]

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
    the plans that hid it, a sample's score the mean over its tokens. The model runs in eval mode on the device of its
    weights. Raises :class:`MaemmError` for a model without a decoder, and where no sample gets a score.
    """
    if model.decoder is None:
        raise MaemmError("score needs a decoder, and these weights hold an encoder only; load a file with one")
    if plans < 1:
        raise MaemmError(f"plans is {plans}; draw at least 1 for each sample")
    modalities = reading_modalities(model, workers)
    loaded = each(source, modalities, batch=batch, workers=workers, seed=seed, on_progress=on_progress)
    skipped: list[BadSample] = []

    def works() -> Iterator[Work[_ScoredBatch]]:
        for read in loaded:
            skipped.extend(read.bad)
            if read.raw:
                yield _score_batch(model, read, plans, seed)

    with closing(loaded), evaluating(model):
        scored = [*overlapped(works())]
    return _joined(scored, skipped, source)


# ------------------------------------------------------------------------------------------------ one batch
@dataclass(frozen=True)
class _ScoredBatch:
    ids: list[str]
    rows: list[int]
    labels: np.ndarray  # (B,)
    errors: dict[str, np.ndarray]  # {modality: (B, N) float64}


def _score_batch(model: Model, read: Batch, plans: int, seed: int) -> Work[_ScoredBatch]:
    """Further plans are drawn some at a time, since the host is told only later which samples need them."""
    batch = read.to(next(model.parameters()).device)
    preprocessed = model.preprocess(batch.raw, None, side_inputs=batch.side_inputs)

    def drawn(number: int) -> dict[str, ModalityInput]:
        keys = [(seed, "score", index, number) for index in batch.rows]
        return model.plan(preprocessed, PerSampleRng(keys, (seed, "score", number)))

    first = drawn(0)
    errors = {name: _TokenErrors(x) for name, x in first.items() if model.only.get(name) != "encode"}
    for number in range(plans):
        _add_errors(errors, model, drawn(number) if number else first)
    for start in range(plans, plans * (1 + MORE), plans):
        further = [{name: x.plan for name, x in drawn(number).items()} for number in range(start, start + plans)]
        rows = [{name: plan.rows for name, plan in by_name.items()} for by_name in further]
        incomplete, rows = yield _incomplete(errors, further), rows
        needed = [number for number in range(plans) if incomplete[number].any()]
        for number in needed:
            _add_errors(
                errors,
                model,
                {
                    name: _only(replace(first[name], plan=plan), incomplete[number], rows[number][name])
                    for name, plan in further[number].items()
                },
            )
        if len(needed) < plans:
            break
    means = yield {name: own.mean() for name, own in errors.items()}
    return _ScoredBatch(read.ids, read.rows, _labels(read), {name: x.numpy() for name, x in means.items()})


def _add_errors(errors: dict[str, _TokenErrors], model: Model, inputs: dict[str, ModalityInput]) -> None:
    loss = model.predict(inputs).loss
    for name, own in errors.items():
        own.add(inputs[name].plan, loss[name])


def _incomplete(errors: dict[str, _TokenErrors], further: list[dict[str, Plan]]) -> Tensor:
    """(plans, B) bool: samples with a token that no earlier plan has hidden."""
    weights = {name: own.weight.clone() for name, own in errors.items()}
    rounds = []
    for plans in further:
        rounds.append(torch.stack([own.incomplete(weights[name]) for name, own in errors.items()]).any(0))
        for name, weight in weights.items():
            weight.index_put_(_position(plans[name]), plans[name].counted.double(), accumulate=True)
    return torch.stack(rounds)


def _only(inputs: ModalityInput, samples: Tensor, rows: Tensor | None) -> ModalityInput:
    """The plans of some of the samples, each with a pass of its own; on the host, ``samples`` (B,) bool and ``rows``
    of the plan."""
    rows = torch.arange(len(samples)) if rows is None else rows
    chosen = samples[rows].nonzero()[:, 0]
    chosen, rows = to_device((chosen, rows[chosen]), inputs.plan.visible.device)
    of_rows = ("visible", "predict", "visible_valid", "predict_valid", "counted")
    fields: dict[str, Any] = {
        name: None if (x := getattr(inputs.plan, name)) is None else x[chosen] for name in of_rows
    }
    return replace(inputs, plan=Plan(**fields, rows=rows, budget=inputs.plan.budget))


def _position(plan: Plan) -> tuple[Tensor, Tensor]:
    """(sample, token) of what is predicted, (R, M) each."""
    rows = torch.arange(len(plan.predict), device=plan.predict.device) if plan.rows is None else plan.rows
    return rows[:, None].expand_as(plan.predict), plan.predict


class _TokenErrors:
    """Errors of the tokens of one batch, added up over plans."""

    def __init__(self, inputs: ModalityInput):
        tokens = inputs.tokens
        self.sum = torch.zeros(tokens.batch, tokens.count, dtype=torch.float64, device=tokens.values.device)
        self.weight = torch.zeros_like(self.sum)
        self.valid = torch.ones_like(self.sum, dtype=torch.bool) if tokens.valid is None else tokens.valid

    def add(self, plan: Plan, loss: Tensor) -> None:
        """Add the loss (R, P) of the predicted tokens."""
        position, counted = _position(plan), plan.counted.double()
        errors = loss.double().nan_to_num(nan=torch.inf, posinf=torch.inf)  # in ``mean`` NaN means never hidden
        self.sum.index_put_(position, torch.where(counted > 0, errors * counted, 0.0), accumulate=True)
        self.weight.index_put_(position, counted, accumulate=True)

    def incomplete(self, weight: Tensor) -> Tensor:
        """(B,) bool: samples with a token that was never hidden, by ``weight`` (B, N) of all plans so far."""
        return ((weight == 0) & self.valid).any(1)

    def mean(self) -> Tensor:
        """(B, N), NaN for padding and for tokens that were never hidden."""
        scored = self.valid & (self.weight > 0)
        return torch.where(scored, self.sum / self.weight.clamp(min=1e-12), torch.nan)


# ------------------------------------------------------------------------------------------------ all batches
def _joined(scored: list[_ScoredBatch], skipped: list[BadSample], source: Source) -> Scores:
    if not scored:
        first = f" (first: {skipped[0].id}: {skipped[0].reason})" if skipped else ""
        raise MaemmError(f"none of {len(source):,} samples can be read{first}; give other data")
    tokens: list[np.ndarray] = []
    spans: dict[str, tuple[int, int]] = {}
    start = 0
    for name in scored[0].errors:
        errors = [part.errors[name] for part in scored]
        width = max(own.shape[1] for own in errors)
        padded = [np.pad(own, ((0, 0), (0, width - own.shape[1])), constant_values=np.nan) for own in errors]
        tokens.append(np.concatenate(padded))
        spans[name] = start, start + width
        start += width
    samples = np.mean([_row_means(errors) for errors in tokens], axis=0)
    ids = [id for part in scored for id in part.ids]
    indices = np.array([row for part in scored for row in part.rows], np.int64)
    labels = np.concatenate([part.labels for part in scored])
    finite = np.isfinite(samples)
    if not finite.any():
        raise MaemmError(f"none of {len(source):,} samples has a finite score; check the data and the weights")
    complete(len(ids), len(skipped), len(source), "start again, or set data.workers=0")
    bad = [BadSample(int(indices[i]), ids[i], NOT_FINITE) for i in np.flatnonzero(~finite)]
    return Scores(
        samples[finite],
        np.concatenate(tokens, axis=1).astype(np.float32)[finite],
        [ids[i] for i in np.flatnonzero(finite)],
        labels[finite],
        sorted(skipped + bad, key=lambda sample: sample.index),
        spans,
        indices[finite],
        source.classes,
    )


def _row_means(errors: np.ndarray) -> np.ndarray:
    """Mean over the scored tokens; a token with an infinite or undefined error makes its sample's mean so."""
    scored = ~np.isnan(errors)
    total = np.where(scored, errors, 0).sum(1)
    return np.divide(total, scored.sum(1), out=np.full(len(errors), np.nan), where=scored.any(1))


def _labels(batch: Batch) -> np.ndarray:
    """(B,) labels; -1 for all of a multi-label batch."""
    if batch.labels is None or batch.labels.ndim > 1:
        return np.full(len(batch.ids), -1)
    return batch.labels.numpy()
