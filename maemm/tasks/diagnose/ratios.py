"""The loss at other mask ratios than the model was trained with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import Masking, Output, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.data.transfer import on_host
from maemm.model.build import build_masking
from maemm.model.model import Model
from maemm.registry.make import make, part_of
from maemm.tasks._shared.scoring import PerSampleRng

RATIOS = (0.1, 0.25, 0.5, 0.6, 0.75, 0.85, 0.9, 0.95)


@dataclass
class Losses:
    """Mean loss of a token, by modality and ratio; NaN where a ratio leaves no visible token, or none to predict."""

    ratios: list[float] = field(default_factory=list)
    loss: dict[str, list[float]] = field(default_factory=dict)
    mean_predictor: dict[str, list[float]] = field(
        default_factory=dict
    )  # of the best constant prediction for a batch; NaN: unknown
    note: str = ""


class LossesByRatio:
    """Accumulates losses over batches: ``add`` each, then ``result``."""

    def __init__(self, model: Model, ratios: Sequence[float], seed: int = 0):
        self.model, self.ratios, self.seed, self.note = model, list(ratios), seed, ""
        self.maskings: dict[float, Masking] = {}
        self.sums: dict[tuple[str, float], Tensor] = {}  # (3,) loss, loss of the mean-predictor, count
        try:
            if model.decoder is None:
                raise MaemmError("these weights hold an encoder only")
            self.maskings = {ratio: build_masking(with_ratio(model.recipe, ratio)) for ratio in self.ratios}
        except MaemmError as error:
            self.note = f"no loss by mask ratio: {error}"

    def add(self, batch: Mapping[str, Preprocessed], rows: Sequence[int]) -> None:
        """``rows``: indices of the samples in their source, from which their masks are drawn."""
        for ratio, masking in self.maskings.items():
            rng = PerSampleRng([(self.seed, "ratio", row) for row in rows], (self.seed, "ratio"))
            try:
                with _masking_replaced(self.model, masking):
                    plan_inputs = self.model.plan(dict(batch), rng)
                    plans = [inputs.plan for inputs in plan_inputs.values()]
                    if not all(plan.visible.shape[1] and plan.predict.shape[1] for plan in plans):
                        continue
                    output = self.model.predict(plan_inputs)
            except MaemmError as error:  # the target's normalisation is not recorded, or no plan has this ratio
                self.note = f"no loss at mask ratio {ratio:g}: {error}"
                continue
            for name in output.loss:
                sums = _sums(self.model, output, name)
                self.sums[name, ratio] = self.sums.get((name, ratio), 0) + sums

    def result(self) -> Losses:
        """The mean losses."""
        losses, all_sums = Losses(self.ratios, note=self.note), on_host(self.sums)
        for name in dict.fromkeys(name for name, _ in all_sums):
            sums = [all_sums.get((name, ratio)) for ratio in self.ratios]
            for i, means in ((0, losses.loss), (1, losses.mean_predictor)):
                means[name] = [float("nan") if x is None else float(x[i] / x[2]) for x in sums]
        return losses


def _sums(model: Model, output: Output, name: str) -> Tensor:
    """(3,) sums of the loss and of that of the best constant (NaN if unknown), and the count, in float64."""
    counted, loss, baseline = output.plans[name].counted.double(), output.loss[name], model.baseline(output, name)
    baseline = torch.full_like(loss, torch.nan) if baseline is None else baseline
    sums = [(x.double() * counted).sum() for x in (loss, baseline)]
    return torch.stack([*sums, counted.sum()])


def with_ratio(recipe: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """A copy of the recipe with this ratio in every masking.

    Raises :class:`MaemmError` for a masking that has no option ``ratio``.
    """
    changed = copy.deepcopy(dict(recipe))
    if changed.get("masking"):
        changed["masking"] = _spec_with_ratio(changed["masking"], ratio)
        return changed
    for spec in changed["modalities"].values():
        shared = changed["modalities"].get(spec.get("same_as", ""), {})
        spec["masking"] = _spec_with_ratio(spec.get("masking") or shared.get("masking") or "random", ratio)
    return changed


def _spec_with_ratio(spec: Any, ratio: float) -> dict[str, Any]:
    name, options = part_of(spec)
    accepted = options_of(registry.find("maskings", name))
    if "ratio" in accepted:
        changed = {"type": name, **options, "ratio": ratio}
        if getattr(make("maskings", changed), "ratio", ratio) is None:
            raise MaemmError(f"masking {name!r} goes by something else than its ratio")
        return changed
    if "masking" in accepted:  # a masking that wraps another one
        inner = options.get("masking", accepted["masking"].default)
        return {"type": name, **options, "masking": _spec_with_ratio(inner, ratio)}
    raise MaemmError(f"masking {name!r} has no option ratio")


@contextmanager
def _masking_replaced(model: Model, masking: Masking) -> Iterator[None]:
    before = model.masking
    model.masking = masking
    try:
        yield
    finally:
        model.masking = before
