"""What is visible is predicted too: an autoencoder of whole signals that hides a part of its input."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.options import PartOf
from maemm.contract.rng import Rng
from maemm.model.masking.counts import as_sets
from maemm.registry.make import make


class PredictAll(Masking):
    """The plans of another masking, in which every token is predicted and counts in the loss (MAETok: Chen et al. 2025,
    arXiv 2502.03444, section 3.2: the pixels of all patches). With ratio 0 nothing is hidden: a plain autoencoder.

    Objectives of the type predict with ``tokens: hidden`` count what is hidden alone. Plans have one shape in all
    steps, also where the ratio is drawn: lists of visible tokens are padded.

    Options
        masking: the masking that draws what is visible, a name or {type: name, options}
    """

    counts_visible = True

    def __init__(self, *, masking: Annotated[str | dict[str, Any], PartOf("maskings")] = "random"):
        self.masking: Masking = make("maskings", masking, where="masking.masking")

    def guide_of(self, name: str, progress: float) -> str | None:
        return self.masking.guide_of(name, progress)

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        fixed = self.masking.shapes(tokens) == 1
        sets = [
            {name: self._predicting_all(plan, tokens[name], fixed) for name, plan in plans.items()}
            for plans in as_sets(self.masking(tokens, rng, guides))
        ]
        return sets if len(sets) > 1 else sets[0]

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        return self.masking.notes(tokens, rng)

    def _predicting_all(self, plan: Plan, tokens: Tokens, fixed: bool) -> Plan:
        shown = Plan.all_visible(replace(tokens, rows=None))  # the tokens of each sample that are no padding
        predict, valid = shown.visible, shown.visible_valid
        if plan.rows is not None:
            predict, valid = predict[plan.rows], None if valid is None else valid[plan.rows]
        counted = torch.ones(predict.shape, device=predict.device) if valid is None else valid.float()
        plan = plan if fixed else _padded(plan, tokens.count)
        return replace(plan, predict=predict, predict_valid=valid, counted=counted)


def _padded(plan: Plan, count: int) -> Plan:
    """The same with a list of ``count`` visible tokens, so that it is as long in every step, whatever the ratio."""
    rows, visible = plan.visible.shape
    more = count - visible
    if not more or not visible:
        return plan
    index = torch.cat([plan.visible, plan.visible[:, -1:].expand(-1, more)], 1)
    valid = torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
    return replace(plan, visible=index, visible_valid=torch.cat([valid, valid.new_zeros(rows, more)], 1))
