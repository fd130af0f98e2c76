"""Validation during training: loss and metrics on held-out samples, the best weights by them, early stopping."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, Output, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Batch
from maemm.data.mixture import parts_of
from maemm.data.single_pass import each
from maemm.data.tta import TtaModality, tta_views_of
from maemm.model.build import build_modalities
from maemm.model.model import Model
from maemm.train.step import TrainState
from maemm.weights.checkpoints import write_best

HIGHER_IS_BETTER = ("accuracy", "mAP")  # the first of these that there is decides; without any, the loss does


class Validator:
    """Decides when a run is validated, which weights are the best so far, and when it stops improving.

    Without ``source`` it does nothing. Its state is part of a checkpoint.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        source: Source | None,
        model: Model,
        world_size: int,
        steps_per_epoch: int,
        folder: Path,
    ):
        """Validate every ``train.validate_every`` steps (default: an epoch); keep the best weights in ``folder``.

        Raises :class:`MaemmError` for patience without samples, and where an objective needs the other ranks, as rank
        0 validates alone.
        """
        coupled = [name for name, objective in model.objectives.items() if objective.coupled]
        if source is not None and coupled and world_size > 1:
            raise MaemmError(
                f"objective {coupled[0]!r} compares samples across ranks, but rank 0 validates alone; leave "
                "data.validation out, or train on one rank"
            )
        self.patience: int | None = recipe["train"].get("patience")
        if source is None and self.patience:
            raise MaemmError("train.patience needs samples to validate with; set data.validation=0.1, or other data")
        self.recipe, self.source, self.folder = recipe, source, folder
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
        """:func:`validate` the model, averaged if there is an average, and save its weights if they are the best."""
        assert self.source is not None
        model = train_state.ema_model or train_state.model
        metrics = validate(model, self.source, self.recipe, bf16=train_state.bf16)
        if self._improves(metrics):
            write_best(self.folder, model, {"step": step, "validation": metrics})
        return metrics

    def record(self, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of a validation; on every rank."""
        if self._improves(metrics):
            self.best_score, self.without_improvement = _score(metrics), 0
            self.best_text = f"; best validation {', '.join(f'{name} {x:.4g}' for name, x in metrics.items())}"
        else:
            self.without_improvement += 1

    def _improves(self, metrics: Mapping[str, float]) -> bool:
        return self.best_score is None or _score(metrics) > self.best_score

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best_score, "without_improvement": self.without_improvement, "best_text": self.best_text}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``state`` of :meth:`state_dict`, or empty."""
        if state:
            self.best_score, self.without_improvement = state["best"], state["without_improvement"]
            self.best_text = state["best_text"]


def _score(metrics: Mapping[str, float]) -> float:
    """One number, of which higher is better."""
    return next((metrics[name] for name in HIGHER_IS_BETTER if name in metrics), -metrics["loss"])


# --------------------------------------------------------------------------------------------- one validation
@torch.no_grad()
def validate(model: Model, source: Source, recipe: Mapping[str, Any], *, bf16: bool = False) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...} over all readable samples of ``source``, without augmentation.

    Masks are the same each time. With ``train.validate_tta`` what the objectives compare is averaged over the views of
    each sample. The model returns to the mode it was in. Raises :class:`MaemmError` where no sample can be read.
    """
    data, train, device = recipe["data"], recipe["train"], next(model.parameters()).device
    modalities: dict[str, Any] = dict(model.modalities)
    batch_size = min(train.get("micro_batch") or train["batch"], 256)
    tta_views = tta_views_of(modalities) if train.get("validate_tta") else 1
    if data["workers"]:  # without parameters, which need not travel to the workers
        modalities = dict(build_modalities(dict(recipe)))
    if tta_views > 1:
        modalities = {name: TtaModality(modality, tta_views) for name, modality in modalities.items()}
        batch_size = max(1, batch_size // tta_views)
    loss_sum, rows, unreadable = 0.0, 0, 0
    answers: dict[str, dict[str, list[Tensor]]] = {name: {} for name in model.objectives}
    training = model.training
    model.eval()
    try:
        with closing(_batches(source, modalities, data, batch_size)) as batches:
            for batch in batches:
                unreadable += len(batch.bad)
                if not batch.raw:  # none of its samples could be read
                    continue
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    out, loss, batch_rows = _forward(model, batch.to(device), train["seed"], tta_views)
                    loss_sum, rows = loss_sum + loss * batch_rows, rows + batch_rows
                    for name, objective in model.objectives.items():
                        for key, value in objective.answers(out).items():
                            answers[name].setdefault(key, []).append(_mean_over_views(value, tta_views).cpu())
    finally:
        model.train(training)
    if not rows:
        raise MaemmError(f"none of the {len(source):,} samples to validate with can be read; check data.validation")
    metrics: dict[str, float] = {}
    for name, objective in model.objectives.items():
        if answers[name]:
            metrics |= objective.metrics({key: torch.cat(values) for key, values in answers[name].items()})
    return metrics | {"loss": loss_sum / rows} | ({"unreadable_samples": float(unreadable)} if unreadable else {})


def _batches(
    source: Source, modalities: Mapping[str, Modality], data: Mapping[str, Any], batch_size: int
) -> Generator[Batch, None, None]:
    """Every sample once; of a mixture one data set after the other, each with its own modalities."""
    for part, names in parts_of(source):
        of_part = {name: modality for name, modality in modalities.items() if names is None or name in names}
        batches = each(
            part,
            of_part,
            batch=batch_size,
            workers=data["workers"],
            timeout=data["timeout"],
            missing=data.get("missing") or "skip",
        )
        with closing(batches):
            yield from batches


def _forward(model: Model, batch: Batch, seed: int, tta_views: int) -> tuple[Output, float, int]:
    """The output for a batch, with masks that depend on its number alone, its loss and how many rows it has.

    Of several sets of plans the output is the first and the loss the mean.
    """
    rows = len(batch.ids) * tta_views
    rng = Rng((seed, "validation", batch.step), range(rows), rows)
    sets = model.plan_sets(model.preprocess(batch.raw, None, batch.present, batch.side_inputs), rng)
    labels = batch.labels if batch.labels is None or tta_views == 1 else batch.labels.repeat_interleave(tta_views, 0)
    outputs = [model(inputs, labels=labels) for inputs in sets]
    return outputs[0], float(torch.stack([out.total for out in outputs]).mean()), rows


def _mean_over_views(values: Tensor, tta_views: int) -> Tensor:
    """(B * views, ...) -> (B, ...): means of floats, of anything else the value of the first view."""
    if tta_views == 1:
        return values
    by_sample = values.unflatten(0, (-1, tta_views))
    return by_sample.mean(1) if values.is_floating_point() else by_sample[:, 0]
