"""Figures on samples that are not learned from, the best weights by them, and the end of a run that gets no better."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
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
from maemm.weights import save

HIGHER = ("accuracy", "mAP")  # figures that are better when larger; otherwise the loss counts


@dataclass
class Validation:
    """Does nothing where there are no samples for it. Its state is part of a checkpoint."""

    recipe: Mapping[str, Any]
    source: Source | None
    every: int
    folder: Path
    best: float | None = None
    since: int = 0  # validations without a better figure
    told: str = ""

    @classmethod
    def of(
        cls, recipe: Mapping[str, Any], source: Source | None, epoch: int, folder: Path, model: Model, world: int
    ) -> Validation:
        """From a recipe: ``train.validate_every``, ``train.patience``; one process measures for all.

        Raises :class:`MaemmError` for patience without samples, and where an objective needs the other processes.
        """
        coupled = [name for name, one in model.objectives.items() if one.coupled]
        if source is not None and coupled and world > 1:
            raise MaemmError(
                f"objective {coupled[0]!r} compares samples of all processes, one of which validates alone; leave "
                "data.validation out, or train in one process"
            )
        if source is None and recipe["train"].get("patience"):
            raise MaemmError("train.patience needs samples to validate with; set data.validation=0.1, or other data")
        return cls(recipe, source, recipe["train"].get("validate_every") or epoch, folder)

    def due(self, done: int, steps: int) -> bool:
        """Whether to validate after that many steps."""
        return self.source is not None and (done % self.every == 0 or done == steps)

    @property
    def stopped(self) -> bool:
        patience = self.recipe["train"].get("patience")
        return patience is not None and self.since >= patience

    # ------------------------------------------------------------------------------------------- measuring
    def measure(self, train_state: Any, done: int) -> dict[str, float]:
        """Means over the samples, of the average of the weights where there is one; the best weights are kept."""
        model = train_state.model if train_state.ema is None else train_state.ema.model
        found = measure(model, self.source, self.recipe, bf16=train_state.bf16)
        if self.better(found):
            self._keep(model, found, done)
        return found

    def record(self, found: Mapping[str, float] | None) -> None:
        """Take note of figures, in every process."""
        if found is None:
            return
        if self.better(found):
            self.best, self.since = self.score(found), 0
            self.told = f"; best validation {', '.join(f'{name} {value:.4g}' for name, value in found.items())}"
        else:
            self.since += 1

    def score(self, found: Mapping[str, float]) -> float:
        """One number that is better when larger."""
        return next((found[name] for name in HIGHER if name in found), -found["loss"])

    def better(self, found: Mapping[str, float]) -> bool:
        return self.best is None or self.score(found) > self.best

    def _keep(self, model: Model, found: Mapping[str, float], done: int) -> None:
        beside = self.folder / ".model.safetensors.tmp"
        try:
            self.folder.mkdir(exist_ok=True)
            save(model, beside)
            os.replace(beside, self.folder / "model.safetensors")
            text = json.dumps({"step": done, "validation": found}, indent=1) + "\n"
            (self.folder / "meta.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise MaemmError(f"cannot write {self.folder} ({error.strerror}); free space and start again") from error

    # ------------------------------------------------------------------------------------------ checkpoints
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@torch.no_grad()
def measure(
    model: Model,
    source: Source,
    recipe: Mapping[str, Any],
    *,
    batch: int | None = None,
    bf16: bool = False,
    on_progress: Any = None,
) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...}: over all samples that can be read, without augmentation.

    Masks are the same each time. With ``train.validate_tta`` answers are averaged over the views of each sample.
    The model comes back in the mode it had. Raises :class:`MaemmError` where no sample can be read.
    """
    train, device = recipe["train"], next(model.parameters()).device
    tta_views = tta_views_of(dict(model.modalities)) if train.get("validate_tta") else 1
    batches = _of_parts(source, *_reading(model, recipe, batch, tta_views, on_progress))
    seen = _Seen(model, tta_views)
    training = model.training
    model.eval()
    try:
        for one in batches:
            if one.raw:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    seen.add(_answer(model, one.to(device), train["seed"], tta_views))
    finally:
        batches.close()
        model.train(training)
    if not seen.rows:
        raise MaemmError(f"none of the {len(source):,} samples to validate with can be read; check data.validation")
    return seen.metrics()


def _reading(
    model: Model, recipe: Mapping[str, Any], batch: int | None, tta_views: int, on_progress: Any
) -> tuple[dict[str, Modality], dict[str, Any]]:
    """The modalities that read in the workers, and how batches are made."""
    data, train = recipe["data"], recipe["train"]
    modalities = build_modalities(dict(recipe)) if data["workers"] else dict(model.modalities)
    size = batch or min(train.get("micro_batch") or train["batch"], 256)
    if tta_views > 1:
        modalities, size = (
            {name: TtaModality(one, tta_views) for name, one in modalities.items()},
            max(1, size // tta_views),
        )
    options = {"workers": data["workers"], "timeout": data["timeout"], "missing": data.get("missing") or "skip"}
    return modalities, {"batch": size, "on_progress": on_progress, **options}


def _answer(model: Model, batch: Batch, seed: int, tta_views: int) -> tuple[Output, int]:
    """The forward pass of one batch and its rows, with masks that are the same each time."""
    rows = len(batch.ids) * tta_views
    rng = Rng((seed, "validation", batch.step), range(rows), rows)
    planned = model.plan(model.preprocess(batch.raw, None, batch.present), rng)
    labels = batch.labels if batch.labels is None or tta_views == 1 else batch.labels.repeat_interleave(tta_views, 0)
    return model(planned, labels=labels), rows


class _Seen:
    """What the batches of a validation add up to."""

    def __init__(self, model: Model, tta_views: int):
        self.model, self.tta_views = model, tta_views
        self.loss, self.rows = 0.0, 0
        self.answers: dict[str, dict[str, list[Tensor]]] = {name: {} for name in model.objectives}

    def add(self, found: tuple[Output, int]) -> None:
        out, rows = found
        self.loss, self.rows = self.loss + float(out.total) * rows, self.rows + rows
        for name, objective in self.model.objectives.items():
            for key, value in objective.answers(out).items():
                self.answers[name].setdefault(key, []).append(_of_samples(value, self.tta_views).cpu())

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, objective in self.model.objectives.items():
            if self.answers[name]:
                found |= objective.metrics({key: torch.cat(parts) for key, parts in self.answers[name].items()})
        return found | {"loss": self.loss / self.rows}


def _of_parts(source: Source, modalities: Mapping[str, Modality], options: dict[str, Any]) -> Iterator[Batch]:
    """Batches of every sample once; of a mixture set by set."""
    for part, names in parts_of(source):
        taken = {name: one for name, one in modalities.items() if names is None or name in names}
        with closing(each(part, taken, **options)) as batches:
            yield from batches


def _of_samples(values: Tensor, tta_views: int) -> Tensor:
    """Rows of views -> rows of samples: means of floats, the first of what is no float."""
    if tta_views == 1:
        return values
    rows = values.unflatten(0, (-1, tta_views))
    return rows.mean(1) if values.is_floating_point() else rows[:, 0]
