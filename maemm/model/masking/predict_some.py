"""Only a part of the hidden tokens is predicted: for decoders whose predictions do not depend on each other."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import PartOf, PositiveFraction
from maemm.contract.rng import Rng
from maemm.model.masking.counts import as_sets, packed
from maemm.registry.make import make


class PredictSome(Masking):
    """The plans of another masking, of whose predicted tokens some are left out at random (CrossMAE: Fu et al. 2024,
    arXiv 2401.14391, section 3.2, the prediction ratio). What is visible stays as it is; training costs less.

    Options
        masking: the masking that draws what is visible and predicted, a name or {type: name, options}
        fraction: of all tokens of a sample that is predicted; as published, int(N * (hidden - fraction)) are left out
    """

    def __init__(
        self,
        *,
        masking: Annotated[str | dict[str, Any], PartOf("maskings")] = "random",
        fraction: PositiveFraction = 0.25,
    ):
        self.masking: Masking = make("maskings", masking, where="masking.masking")
        self.fraction = fraction

    @property
    def counts_visible(self) -> bool:  # type: ignore[override]  # of a class it is a constant
        return self.masking.counts_visible

    def guide_of(self, name: str, progress: float) -> str | None:
        return self.masking.guide_of(name, progress)

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        return self.masking.shapes(tokens)

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        return self.masking.notes(tokens, rng)

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        plans = self.masking(tokens, rng, guides)
        sets = [
            {name: self._some(name, plan, tokens[name], rng, number) for name, plan in drawn.items()}
            for number, drawn in enumerate(as_sets(plans))
        ]
        return sets if isinstance(plans, list) else sets[0]

    def _some(self, name: str, plan: Plan, tokens: Tokens, rng: Rng, number: int) -> Plan:
        rows, hidden = plan.predict.shape
        if not hidden:
            return plan
        if rows != tokens.batch:
            raise MaemmError(
                f"the masking has several rows of predicted tokens for each sample (modalities.{name}.masking), of "
                "which predict_some cannot leave out any; use it with another masking"
            )
        noise = rng.uniform(f"mask/{name}/predicted/{number}", hidden, device=plan.predict.device)
        width = _kept(hidden, tokens.count, self.fraction)
        if tokens.valid is None and plan.predict_valid is None:
            chosen = noise.argsort(1)[:, :width].sort(1).values
            return replace(plan, predict=plan.predict.gather(1, chosen), counted=plan.counted.gather(1, chosen))
        valid = torch.ones_like(plan.predict, dtype=torch.bool) if plan.predict_valid is None else plan.predict_valid
        count = valid.sum(1, keepdim=True)
        whole = torch.full_like(count, tokens.count) if tokens.valid is None else tokens.valid.sum(1, keepdim=True)
        rank = noise.masked_fill(~valid, math.inf).argsort(1).argsort(1)
        kept = valid & (rank < count - (count - self.fraction * whole + _ROUNDING).floor().clamp(min=0))
        width = min(hidden, math.ceil(self.fraction * tokens.count - _ROUNDING) + 1)
        place, place_valid = packed(torch.arange(hidden, device=kept.device).expand(rows, -1), kept, width)
        return replace(
            plan,
            predict=plan.predict.gather(1, place),
            predict_valid=place_valid,
            counted=_counted(plan.counted, place, place_valid),
        )


_ROUNDING = 1e-4  # of tokens: fractions such as 0.25 need not be exact in binary


def _kept(hidden: int, count: int, fraction: float) -> int:
    """How many of the hidden tokens of ``count`` are predicted."""
    return hidden - max(0, int(hidden - fraction * count + _ROUNDING))


def _counted(counted: Tensor, place: Tensor, valid: Tensor) -> Tensor:
    return counted.gather(1, place) * valid
