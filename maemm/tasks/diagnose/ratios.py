"""The loss at other shares of hidden tokens than the model was trained with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import Masking, Output, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.model.build import build_masking
from maemm.model.model import Model
from maemm.registry.make import part_of
from maemm.tasks._shared.scoring import PerSampleRng

RATIOS = (0.1, 0.25, 0.5, 0.6, 0.75, 0.85, 0.9, 0.95)


@dataclass
class Losses:
    """Mean loss of a counted token by modality and ratio; NaN where a ratio leaves nothing to see or to predict."""

    ratios: list[float] = field(default_factory=list)
    loss: dict[str, list[float]] = field(default_factory=dict)
    mean_predictor: dict[str, list[float]] = field(default_factory=dict)  # of answering the mean target of a batch
    note: str = ""


class LossesOver:
    """Adds up over batches."""

    def __init__(self, model: Model, ratios: Sequence[float], seed: int = 0):
        self.model, self.ratios, self.seed, self.note = model, list(ratios), seed, ""
        self.maskings: dict[float, Masking] = {}
        self.sums: dict[tuple[str, float], torch.Tensor] = {}  # loss, mean predictor, count
        try:
            if model.decoder is None:
                raise MaemmError("these weights hold an encoder only")
            self.maskings = {ratio: build_masking(with_ratio(model.recipe, ratio)) for ratio in self.ratios}
        except MaemmError as error:
            self.note = f"no loss by share of hidden tokens: {error}"

    def add(self, batch: Mapping[str, Preprocessed], rows: Sequence[int]) -> None:
        """``rows``: indices of the samples, which their masks depend on."""
        for ratio, masking in self.maskings.items():
            rng = PerSampleRng([(self.seed, "ratio", row) for row in rows], (self.seed, "ratio"))
            try:
                with _masked_by(self.model, masking):
                    inputs = self.model.plan(dict(batch), rng)
                    if not all(one.plan.visible.shape[1] and one.plan.predict.shape[1] for one in inputs.values()):
                        continue
                    out = self.model.predict(inputs)
            except MaemmError as error:  # the target's normalisation is not known, no plan for this ratio
                self.note = f"no loss at {ratio:g} hidden: {error}"
                continue
            for name in out.loss:
                figures = _figures(self.model, out, name)
                self.sums[name, ratio] = self.sums.get((name, ratio), 0) + figures

    def found(self) -> Losses:
        names = list(dict.fromkeys(name for name, _ in self.sums))
        found = Losses(self.ratios, note=self.note)
        for name in names:
            rows = [self.sums.get((name, ratio)) for ratio in self.ratios]
            for place, into in ((0, found.loss), (1, found.mean_predictor)):
                into[name] = [float("nan") if one is None else float(one[place] / one[2]) for one in rows]
        return found


def _figures(model: Model, out: Output, name: str) -> torch.Tensor:
    """(3,) sums of the loss and of the loss of predicting the batch's mean target, and the count."""
    counted, target = out.plans[name].counted.double(), out.target[name]
    mean = (target * counted[..., None].float()).sum((0, 1), keepdim=True) / counted.sum().clamp(min=1e-12).float()
    simple = model.modalities[name].loss(mean.expand_as(target), target)
    both = [(one.double() * counted).sum() for one in (out.loss[name], simple)]
    return torch.stack([*both, counted.sum()]).cpu()


def with_ratio(recipe: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """The recipe with this ratio in every masking. Raises :class:`MaemmError` for one that has no such option."""
    recipe = copy.deepcopy(dict(recipe))
    if recipe.get("masking"):
        recipe["masking"] = _at(recipe["masking"], ratio)
        return recipe
    for spec in recipe["modalities"].values():
        shared = recipe["modalities"].get(spec.get("same_as", ""), {})
        spec["masking"] = _at(spec.get("masking") or shared.get("masking") or "random", ratio)
    return recipe


def _at(spec: Any, ratio: float) -> dict[str, Any]:
    name, options = part_of(spec)
    known = options_of(registry.find("maskings", name))
    if "ratio" in known:
        return {"type": name, **options, "ratio": ratio}
    if "masking" in known:  # one around another
        return {"type": name, **options, "masking": _at(options.get("masking", known["masking"].default), ratio)}
    raise MaemmError(f"masking {name!r} has no option ratio")


@contextmanager
def _masked_by(model: Model, masking: Masking) -> Iterator[None]:
    before = model.masking
    model.masking = masking
    try:
        yield
    finally:
        model.masking = before
