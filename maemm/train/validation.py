"""Validation during training: loss and metrics on held-out samples, the best weights by them, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.loader import Batch
from maemm.data.transfer import Work
from maemm.data.tta import tta_views_of
from maemm.model.model import Model
from maemm.train.distributed import DistContext
from maemm.train.figures import HIGHER_IS_BETTER
from maemm.train.held_out import forward, pass_over, planned
from maemm.train.state import TrainState
from maemm.weights.checkpoints import write_best


class Validator:
    """Decides when a run is validated, which weights are the best so far, and when it stops improving.

    Without ``source`` it does nothing. Its state is part of a checkpoint.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        source: Source | None,
        steps_per_epoch: int,
        folder: Path,
        log: Callable[[str], Any],
    ):
        """Validate every ``train.validate_every`` steps (default: an epoch); keep the best weights in ``folder``.

        Raises :class:`MaemmError` for patience without samples.
        """
        self.patience: int | None = recipe["train"].get("patience")
        if source is None and self.patience:
            raise MaemmError("train.patience needs samples to validate with; set data.validation=0.1, or other data")
        self.recipe, self.source, self.folder, self.log = recipe, source, folder, log
        self.validate_every = recipe["train"].get("validate_every") or steps_per_epoch
        self.best_score: float | None = None
        self.without_improvement = 0  # validations since the best one
        self.best_text = ""  # for the last line of the run

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to validate after ``step`` of ``steps`` steps."""
        return self.source is not None and (step % self.validate_every == 0 or step == steps)

    @property
    def should_stop(self) -> bool:
        """Whether ``train.patience`` has run out."""
        return self.patience is not None and self.without_improvement >= self.patience

    def validate(self, train_state: TrainState, step: int) -> dict[str, float]:
        """:func:`validate` the model, averaged if there is an average, and save its weights if they are the best.

        All ranks call this, and all get the metrics. A validation that is not finite is not an improvement.
        """
        assert self.source is not None
        dist_context = train_state.dist_context
        with train_state.gathered(averaged=True) as model:
            with train_state.eager():  # graphs of its own, for few batches, would take longer than they save
                metrics = validate(model, self.source, self.recipe, bf16=train_state.bf16, dist_context=dist_context)
            if improves := self._improves(metrics):
                dist_context.on_rank0(lambda: write_best(self.folder, model, {"step": step, "validation": metrics}))
        if not _is_finite(metrics):
            text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not math.isfinite(value))
            self.log(f"warning: the validation after step {step} is not finite ({text}), so it is never the best one")
        self._record(metrics, improves)
        return metrics

    def _record(self, metrics: Mapping[str, float], improves: bool) -> None:
        if improves:
            self.best_score, self.without_improvement = _score(metrics), 0
            self.best_text = f"; best validation {', '.join(f'{name} {x:.4g}' for name, x in metrics.items())}"
        else:
            self.without_improvement += 1

    def _improves(self, metrics: Mapping[str, float]) -> bool:
        return _is_finite(metrics) and (self.best_score is None or _score(metrics) > self.best_score)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best_score, "without_improvement": self.without_improvement, "best_text": self.best_text}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``state`` of :meth:`state_dict`, or empty."""
        if state:
            best = state["best"]  # an older version took a NaN for the best where it came first
            self.best_score = best if best is not None and math.isfinite(best) else None
            self.without_improvement = state["without_improvement"]
            self.best_text = state["best_text"]


def _score(metrics: Mapping[str, float]) -> float:
    """One number, of which higher is better."""
    return next((metrics[name] for name in HIGHER_IS_BETTER if name in metrics), -metrics["loss"])


def _is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether the loss and the score are: an accuracy is a finite number also of a network that predicts NaN."""
    return math.isfinite(metrics["loss"]) and math.isfinite(_score(metrics))


# --------------------------------------------------------------------------------------------- one validation
@dataclass
class _Validated:
    """What one batch contributes."""

    place: tuple[int, int]  # number of the data set, number of the batch in it
    unreadable: int
    rows: int = 0
    loss: float = 0.0  # mean over its rows
    counts: bool = False  # whether anything is compared in it
    answers: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by objective


def validate(
    model: Model,
    source: Source,
    recipe: Mapping[str, Any],
    *,
    bf16: bool = False,
    dist_context: DistContext | None = None,
) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...} over all readable samples of ``source``, without augmentation.

    Masks are the same each time. With ``train.validate_tta`` what the objectives compare is averaged over the views of
    each sample. The model returns to the mode it was in. The batches are dealt out to the ranks of ``dist_context``,
    all of which call this; each batch is compared by itself, so that the metrics are those of one rank, also of
    objectives that compare samples with each other: with those of the same batch. The loss is NaN where no token is
    predicted and nothing else compared. Raises :class:`MaemmError` where no sample can be read.
    """
    ranks = dist_context or DistContext()
    seed, device = recipe["train"]["seed"], next(model.parameters()).device
    tta_views = tta_views_of(dict(model.modalities)) if recipe["train"].get("validate_tta") else 1

    def validated(part: int, batch: Batch) -> Work[_Validated]:
        result = _Validated((part, batch.step), len(batch.bad))
        if batch.raw:  # else none of its samples could be read
            moved, result.rows = batch.to(device), len(batch.ids) * tta_views
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                outputs, loss = forward(model, moved, planned(model, moved, seed, tta_views)[1], tta_views)
                out = outputs[0]  # of several sets of plans
                counts = [term.count for term in out.parts.values() if term.weight]
                answers = {
                    name: {key: _mean_over_views(x, tta_views) for key, x in objective.answers(out).items()}
                    for name, objective in model.objectives.items()
                }
            loss, counts, result.answers = yield loss, counts, answers
            result.loss, result.counts = float(loss), any(bool(count > 0) for count in counts)
        return result

    batches = pass_over(model, source, recipe, validated, ranks=ranks, tta_views=tta_views)
    return ranks.on_rank0(lambda: _metrics(model, batches, len(source)))


def _metrics(model: Model, batches: list[_Validated], samples: int) -> dict[str, float]:
    """The metrics of all batches, added up in the order of the samples, whoever has computed them."""
    batches = sorted(batches, key=lambda batch: batch.place)
    loss_sum, rows, unreadable = 0.0, 0, 0
    answers: dict[str, dict[str, list[Tensor]]] = {name: {} for name in model.objectives}
    for batch in batches:
        unreadable += batch.unreadable
        loss_sum, rows = loss_sum + batch.loss * batch.rows, rows + batch.rows
        for name, values in batch.answers.items():
            for key, value in values.items():
                answers[name].setdefault(key, []).append(value)
    if not rows:
        raise MaemmError(f"none of the {samples:,} samples to validate with can be read; check data.validation")
    metrics: dict[str, float] = {}
    for name, objective in model.objectives.items():
        if answers[name]:
            metrics |= objective.metrics({key: torch.cat(values) for key, values in answers[name].items()})
    loss = loss_sum / rows if any(batch.counts for batch in batches) else math.nan
    return metrics | {"loss": loss} | ({"unreadable_samples": float(unreadable)} if unreadable else {})


def _mean_over_views(values: Tensor, tta_views: int) -> Tensor:
    """(B * views, ...) -> (B, ...): means of floats, of anything else the value of the first view."""
    if tta_views == 1:
        return values
    by_sample = values.unflatten(0, (-1, tta_views))
    return by_sample.mean(1) if values.is_floating_point() else by_sample[:, 0]
