"""Modalities that are only encoded, or only decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.masking.counts import as_sets, packed


class Only(Masking):
    """A masking, of which some modalities are only encoded: nothing of them is predicted; and others only decoded: the
    masking does not see them, none of their tokens is visible, and all are predicted.

    ``only``: {modality: "encode" or "decode"}.
    """

    def __init__(self, masking: Masking, only: Mapping[str, str]):
        self.masking, self.only = masking, dict(only)

    @property
    def counts_visible(self) -> bool:  # type: ignore[override]  # of a class it is a constant
        return self.masking.counts_visible

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        return self.masking.shapes(self._encoded(tokens))

    def guide_of(self, name: str, progress: float) -> str | None:
        return None if self.only.get(name) == "decode" else self.masking.guide_of(name, progress)

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        return self.masking.notes(self._encoded(tokens), rng)

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        encoded = self._encoded(tokens)
        if not encoded:
            raise MaemmError(
                f"{', '.join(tokens)} can only be decoded, and nothing is left to encode (modalities.NAME.only); "
                "take another modality in too"
            )
        plans = self.masking(encoded, rng, guides)
        sets = [self._completed(drawn, tokens) for drawn in as_sets(plans)]
        return sets if isinstance(plans, list) else sets[0]

    def _encoded(self, tokens: dict[str, Tokens]) -> dict[str, Tokens]:
        return {name: x for name, x in tokens.items() if self.only.get(name) != "decode"}

    def _completed(self, plans: dict[str, Plan], tokens: dict[str, Tokens]) -> dict[str, Plan]:
        like = next(iter(plans.values()))
        completed = {}
        for name, x in tokens.items():
            if self.only.get(name) == "decode":
                completed[name] = _decoded(x, like)
            elif self.only.get(name) == "encode":
                plan = plans[name]
                valid = None if plan.predict_valid is None else plan.predict_valid[:, :0]
                completed[name] = replace(
                    plan, predict=plan.predict[:, :0], predict_valid=valid, counted=plan.counted[:, :0]
                )
            else:
                completed[name] = plans[name]
        return completed


def _decoded(tokens: Tokens, like: Plan) -> Plan:
    """Nothing visible and all valid tokens predicted, in the rows and passes of the plan of another modality."""
    index = torch.arange(tokens.count, device=tokens.values.device).expand(len(like.visible), -1)
    shared: dict[str, Any] = {"rows": like.rows, "passes": like.passes, "first": like.first, "budget": like.budget}
    empty = index[:, :0]
    if tokens.valid is None:
        counted = torch.ones(1, 1, device=index.device).expand(index.shape)
        return Plan(empty, index.contiguous(), counted=counted, **shared)
    valid = tokens.valid if like.rows is None else tokens.valid[like.rows]
    predict, predict_valid = packed(index, valid, tokens.count)
    return Plan(empty, predict, predict_valid=predict_valid, counted=predict_valid.float(), **shared)
