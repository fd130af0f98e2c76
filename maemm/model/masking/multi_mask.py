"""Several masks per sample: it is read, decoded and tokenised once, and trained on k times."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.options import PartOf, Repeats
from maemm.contract.rng import Rng
from maemm.model.masking.counts import as_sets
from maemm.registry.make import make


class MultiMask(Masking):
    """``masks_per_sample`` plans of another masking for every sample (data2vec 2.0, section 3.2).

    The rows of the plan are the first plan of all samples, then the second, and so on.

    Options
        masks_per_sample: plans of each sample
        masking: the masking that draws each plan, a name or {type: name, options}
    """

    def __init__(
        self, *, masks_per_sample: Repeats = 4, masking: Annotated[str | dict[str, Any], PartOf("maskings")] = "random"
    ):
        self.masks_per_sample = masks_per_sample
        self.masking: Masking = make("maskings", masking, where="masking.masking")

    def guide_of(self, name: str, progress: float) -> str | None:
        return self.masking.guide_of(name, progress)

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        return self.masking.shapes(tokens)

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        drawn = [as_sets(self.masking(tokens, key, guides)) for key in self._keys(rng)]
        sets = [
            {name: _joined([plans[name] for plans in several], tokens[name].batch) for name in tokens}
            for several in zip(*drawn, strict=True)
        ]
        return sets if len(sets) > 1 else sets[0]

    def _keys(self, rng: Rng) -> list[Rng]:
        return [rng.fold_in("several", k) for k in range(self.masks_per_sample)]

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        """Those of the first plan."""
        return self.masking.notes(tokens, self._keys(rng)[0])


def _joined(plans: list[Plan], batch: int) -> Plan:
    """Plans of the same samples -> one plan with the rows of all."""
    samples = torch.arange(batch, device=plans[0].visible.device)

    def cat(name: str, steps: int = 0) -> Any:
        """``steps``: what is added from one plan to the next."""
        parts = [getattr(plan, name) for plan in plans]
        return (
            None
            if parts[0] is None
            else torch.cat([x + number * steps for number, x in enumerate(parts)] if steps else parts)
        )

    rows = len(plans[0].visible)
    passes = rows if plans[0].first is None else len(plans[0].first)
    return Plan(
        visible=cat("visible"),
        predict=cat("predict"),
        visible_valid=cat("visible_valid"),
        predict_valid=cat("predict_valid"),
        counted=cat("counted"),
        rows=torch.cat([samples if plan.rows is None else plan.rows for plan in plans]),
        passes=cat("passes", passes),
        first=cat("first", rows),
    )
