"""What a monitor measures of a model on held-out samples: features, targets, predictions and inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Output, Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.data.labels import labelled, multi_hot
from maemm.data.loader import Batch
from maemm.data.transfer import Work
from maemm.model.masking.each_modality import EachModality
from maemm.model.measures import mean_cosine, spectrum
from maemm.model.model import Model
from maemm.model.probes import neighbour_votes, ridge_scores, two_halves
from maemm.model.targets.codes import Classes
from maemm.train.distributed import DistContext
from maemm.train.held_out import forward, pass_over, planned
from maemm.train.step import baselines_of, total_baseline

CONSTANT = 1e-5  # of the size of a channel: what deviates less is constant but for rounding


@dataclass
class _Measured:
    """What one batch contributes; tensors are on the host."""

    place: tuple[int, int]  # number of the data set, number of the batch in it
    ids: int = 0
    terms: dict[str, Tensor] = field(default_factory=dict)  # (sum, count) by term of the loss
    baselines: dict[str, Tensor] = field(default_factory=dict)  # (sum, count)
    weights: dict[str, float] = field(default_factory=dict)  # of the terms
    without: list[str] = field(default_factory=list)  # losses without a baseline
    features: dict[str, Tensor] = field(default_factory=dict)  # {modality: (B, D)}
    present: dict[str, Tensor] = field(default_factory=dict)  # {modality: (B,) bool} of those that samples may lack
    labels: Tensor | None = None
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {modality: see _statistics}


def measure(
    model: Model, source: Source, recipe: Mapping[str, Any], *, bf16: bool = False, ranks: DistContext
) -> dict[str, float]:
    """The figures of ``model`` on all samples of ``source``, on all ranks, which call this together.

    Figures of a modality are called ``NAME.FIGURE``. Of features (mean over tokens, nothing hidden):
    ``effective_rank``, ``variance`` (mean over dimensions), ``cosine`` (mean between two samples), and where there
    are labels ``knn`` and ``ridge`` (accuracy, or mAP, each half of the samples being the other's test). Of a masked
    pass: ``loss``, ``relative_loss`` (divided by that of predicting the mean target), ``target_variance`` (mean over
    dimensions), ``prediction_spread`` (share of the variance of predictions that lies between places of a sample),
    ``leak`` (relative change of the encoder's output when hidden tokens are exchanged for those of another sample: 0
    unless it sees them). Of inputs: ``input_mean``, ``input_std``, ``constant_channels``, ``different`` (share of
    samples that are not copies). A figure that cannot be had is left out. Raises :class:`MaemmError` where no sample
    can be read.
    """
    device, seed = next(model.parameters()).device, recipe["train"]["seed"]

    def measured(part: int, batch: Batch) -> Work[_Measured]:
        result = _Measured((part, batch.step), labels=batch.labels)
        if not batch.raw:
            return result
        moved, result.ids = batch.to(device), len(batch.ids)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            preprocessed, sets = planned(model, moved, seed)
            features = model.embed(preprocessed)
            outputs, _ = forward(model, moved, sets)
            exchanged = _exchanged(model, sets[0]) if batch.step == 0 and model.masked else None
        statistics = {name: _of_input(model.modalities[name], x, sets[0][name]) for name, x in preprocessed.items()}
        for out in outputs:
            result.weights |= {name: term.weight for name, term in out.parts.items()}
            sums, without = baselines_of(out, model)
            result.without += without
            _add(result.terms, {name: torch.stack([x.sum.detach(), x.count]) for name, x in out.parts.items()})
            _add(result.baselines, sums)
        for name in outputs[0].target:
            statistics[name] |= _of_targets(model, outputs[0], name) | {"spread": _spread(outputs[0], name)}
            if exchanged is not None:
                statistics[name]["leak"] = _change(outputs[0].encoded[name], exchanged.encoded[name])
        present = {name: x.present for name, x in preprocessed.items() if x.present is not None}
        tree = {name: x.float() for name, x in features.items()}, present, statistics, result.terms, result.baselines
        result.features, result.present, result.statistics, result.terms, result.baselines = yield tree
        return result

    batches = pass_over(model, source, recipe, measured, ranks=ranks)
    return ranks.on_rank0(lambda: _figures(sorted(batches, key=lambda batch: batch.place), len(source)))


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


# -------------------------------------------------------------------------------------- on the device, of a batch
def _of_input(modality: Modality, x: Preprocessed, inputs: ModalityInput) -> dict[str, Tensor]:
    """Moments of the channels of each sample, and two numbers that tell samples apart."""
    values, known = x.x.float(), torch.isfinite(x.x)
    if x.valid is not None:
        known = known & _like(x.valid, values)
    by_channel = modality.by_channel(x)
    if values.ndim < 3 or (by_channel is not None and len(by_channel) == 1):
        values, known = (part.flatten(1)[:, None] for part in (values, known))
    elif inputs.tokens.grid is None:  # a set (B, N, F); on a grid channels come first
        values, known = (part.movedim(-1, 1) for part in (values, known))
    values, known = (part.reshape(len(part), part.shape[1], -1) for part in (values, known))  # (B, C, n)
    values = torch.where(known, values, 0.0)
    count = known.sum(2)
    mean = values.sum(2) / count.clamp(min=1)
    squares = torch.where(known, values - mean[..., None], 0.0).square().sum(2)
    ramp = torch.arange(values.shape[2], device=values.device).mul(0.7).cos_()
    stamp = torch.stack([values.sum((1, 2)), (values * ramp).sum((1, 2))], 1)
    return {"count": count, "mean": mean, "squares": squares, "stamp": stamp}


def _like(valid: Tensor, values: Tensor) -> Tensor:
    """Validity (B, *size) for values with channels in front or behind, of each value, or of whatever else: all True."""
    shape = values.shape
    if valid.shape == shape[: valid.ndim]:
        return valid.view(*valid.shape, *(1,) * (values.ndim - valid.ndim))
    if valid.shape == (*shape[:1], *shape[2:]):
        return valid.unsqueeze(1)
    return torch.ones_like(values, dtype=torch.bool)


def _of_targets(model: Model, out: Output, name: str) -> dict[str, Tensor]:
    """Moments of the targets by dimension; classes are vectors of 0 and a 1, whose variances are added."""
    target, weight = out.target[name].float().nan_to_num(), out.plans[name].counted
    count, part = weight.sum(), dict(model.targets.items()).get(name)
    if isinstance(part, Classes):
        of_classes = weight.new_zeros(part.vocab).scatter_add_(0, target[..., 0].long().flatten(), weight.flatten())
        mean = of_classes / count.clamp(min=1)
        squares, width = of_classes * (1 - mean), 1
    else:
        mean = (target * weight[..., None]).sum((0, 1)) / count.clamp(min=1)
        squares, width = ((target - mean).square() * weight[..., None]).sum((0, 1)), target.shape[-1]
    return {
        "target_count": count,
        "target_mean": mean,
        "target_squares": squares,
        "target_width": torch.full((), float(width), device=count.device),
    }


def _spread(out: Output, name: str) -> Tensor:
    """(2,): squared deviations of predictions inside rows, and in all."""
    weight, pred = out.plans[name].counted[..., None], out.pred[name].float()
    count = weight.sum()
    in_all = (pred * weight).sum((0, 1)) / count.clamp(min=1)
    in_row = (pred * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return torch.stack([((pred - middle).square() * weight).sum() for middle in (in_row, in_all)])


def _exchanged(model: Model, inputs: dict[str, ModalityInput]) -> Output:
    """The pass with all tokens that are predicted, but not seen by right, exchanged for those of the sample before."""

    def exchange(name: str, x: ModalityInput) -> ModalityInput:
        plan, values = x.plan, x.tokens.values
        rows = torch.arange(len(plan.visible), device=values.device) if plan.rows is None else plan.rows
        shape = len(rows), x.tokens.count
        ones = torch.ones_like(plan.visible, dtype=torch.float32)
        seen = plan.counted.new_zeros(shape).scatter_reduce_(
            1, plan.visible, ones if plan.visible_valid is None else plan.visible_valid.float(), "amax"
        )
        predicted = plan.counted.new_zeros(shape).scatter_reduce_(1, plan.predict, plan.counted, "amax")
        # What stays: a token that another row of the sample sees, and all that are seen where the masking says so.
        masking = model.masking.maskings[name] if isinstance(model.masking, EachModality) else model.masking
        by_right = seen if masking.counts_visible else seen * (predicted == 0)
        of_samples = [
            part.new_zeros(x.tokens.batch, shape[1]).index_add_(0, rows, part) for part in (predicted, by_right)
        ]
        hidden = (of_samples[0] > 0) & (of_samples[1] == 0)
        hidden = hidden.view(*hidden.shape, *(1,) * (values.ndim - 2))
        return replace(x, tokens=replace(x.tokens, values=torch.where(hidden, values.roll(1, 0), values)))

    return model.predict({name: exchange(name, x) for name, x in inputs.items()})


def _change(before: Tensor, after: Tensor) -> Tensor:
    """(sum of squared differences, sum of squares), float64."""
    before, after = before.double(), after.double()
    return torch.stack([(after - before).square().sum(), before.square().sum()])


# ------------------------------------------------------------------------------------------------ on the host, of all
def _figures(batches: Sequence[_Measured], samples: int) -> dict[str, float]:
    if not any(batch.ids for batch in batches):
        raise MaemmError(f"none of the {samples:,} samples to monitor can be read; check train.monitor.data")
    figures: dict[str, float] = {}
    terms, baselines, weights = dict[str, Tensor](), dict[str, Tensor](), dict[str, float]()
    without: set[str] = set()
    for batch in batches:
        _add(terms, {name: pair.double() for name, pair in batch.terms.items()})
        _add(baselines, {name: pair.double() for name, pair in batch.baselines.items()})
        weights |= batch.weights
        without.update(batch.without)
    means = {name: float(pair[0] / pair[1]) if pair[1] else math.nan for name, pair in terms.items()}
    figures["loss"] = sum(weights[name] * mean for name, mean in means.items())
    best = {name: float(pair[0] / pair[1].clamp(min=1e-12)) for name, pair in baselines.items()}
    baseline = total_baseline(weights, best, without)
    if baseline is not None:
        figures["baseline"] = baseline
        figures["relative_loss"] = figures["loss"] / baseline if baseline > 0 else math.nan
    for name in dict.fromkeys(name for batch in batches for name in batch.statistics):
        own = [batch for batch in batches if name in batch.statistics]
        of_modality = _of_features(name, own) | _of_statistics([batch.statistics[name] for batch in own])
        figures |= {f"{name}.{figure}": value for figure, value in of_modality.items()}
    return figures


def _of_features(name: str, batches: Sequence[_Measured]) -> dict[str, float]:
    of_batches = [batch for batch in batches if name in batch.features]
    if not of_batches:
        return {}
    x = torch.cat([batch.features[name] for batch in of_batches]).flatten(1).numpy()
    here = torch.cat(
        [batch.present.get(name, torch.ones(batch.ids, dtype=torch.bool)) for batch in of_batches]
    ).numpy() & np.isfinite(x).all(1)
    if here.sum() < 2:
        return {}
    figures = {
        "effective_rank": spectrum(x[here]).effective_rank,
        "variance": float(x[here].var(0, dtype=np.float64).mean()),
        "cosine": mean_cosine(x[here]),
    }
    hot, has_label = _labels(of_batches)
    rows = here & has_label
    for title, scores in (("knn", neighbour_votes), ("ridge", ridge_scores)):
        value = two_halves(x[rows], hot[rows], scores)
        if value is not None:
            figures[title] = value
    return figures


def _labels(batches: Sequence[_Measured]) -> tuple[np.ndarray, np.ndarray]:
    """((n, C) labels of 0 and 1, (n,) bool: which samples have some)."""
    classes = max((int(batch.labels.max()) + 1 for batch in batches if batch.labels is not None), default=1)
    hot, has_label = [], []
    for batch in batches:
        if batch.labels is None:
            hot.append(np.zeros((batch.ids, max(classes, 1)), np.float32))
            has_label.append(np.zeros(batch.ids, bool))
        else:
            hot.append(multi_hot(batch.labels, max(classes, 1)).numpy())
            has_label.append(labelled(batch.labels).numpy())
    return np.concatenate(hot), np.concatenate(has_label)


def _of_statistics(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The figures of inputs, targets and predictions, from what :func:`_of_input` and so on give."""
    figures = _of_channels(batches)
    stamps = torch.cat([batch["stamp"].double() for batch in batches]).tolist()
    figures["different"] = len({tuple(f"{number:.5g}" for number in stamp) for stamp in stamps}) / len(stamps)
    if all("target_count" in batch for batch in batches):
        counts, means, sums = ([b[key].double() for b in batches] for key in _TARGET)
        total = sum(float(count) for count in counts)
        if total:
            centre = sum((c * m for c, m in zip(counts, means, strict=True)), torch.zeros(())) / total
            between = [c * (m - centre).square() for c, m in zip(counts, means, strict=True)]
            width = float(batches[0]["target_width"])
            figures["target_variance"] = float((sum(sums, torch.zeros(())) + sum(between)).sum()) / (total * width)
            figures["target_mean_square"] = float(centre.square().sum()) / width
        within, whole = sum((b["spread"].double() for b in batches), torch.zeros(2)).tolist()
        if whole > 0:
            figures["prediction_spread"] = within / whole
    changes = [batch["leak"] for batch in batches if "leak" in batch]
    if changes:
        difference, size = sum(changes, torch.zeros(2)).tolist()
        figures["leak"] = math.sqrt(difference / size) if size > 0 else math.nan
    return figures


def _of_channels(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """How inputs are normalised, and channels without content; nothing where batches differ in their channels."""
    if len({batch["mean"].shape[1] for batch in batches}) > 1:
        return {}
    count, mean, squares = (
        torch.cat([batch[key].double() for batch in batches]).numpy() for key in ("count", "mean", "squares")
    )
    values = count.sum(0)
    in_all = (mean * count).sum(0) / np.maximum(values, 1)
    variance = (squares + count * np.square(mean - in_all)).sum(0) / np.maximum(values, 1)
    middle = float((in_all * values).sum() / max(values.sum(), 1))
    std = float(np.sqrt(((variance + np.square(in_all - middle)) * values).sum() / max(values.sum(), 1)))
    constant = (values > 0) & (np.sqrt(variance) <= CONSTANT * np.maximum(np.abs(in_all), std))
    return {
        "input_mean": middle,
        "input_std": std,
        "constant_channels": float(constant.sum()),
        "channels": float(len(values)),
    }


_TARGET = ("target_count", "target_mean", "target_squares")
