"""Several masks per sample: it is read, decoded and tokenised once, and trained on k times."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.options import PartOf, Repeats
from maemm.contract.rng import Rng
from maemm.model.masking.counts import single_set
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
        self.guide = self.masking.guide

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        keys = [rng.fold_in("several", k) for k in range(self.masks_per_sample)]
        drawn = [single_set(self.masking(tokens, key, guides)) for key in keys]
        return {name: _joined([plans[name] for plans in drawn], tokens[name].batch) for name in tokens}


def _joined(plans: list[Plan], batch: int) -> Plan:
    """Plans of the same samples -> one plan with the rows of all."""
    samples = torch.arange(batch, device=plans[0].visible.device)

    def cat(name: str) -> Any:
        parts = [getattr(plan, name) for plan in plans]
        return None if parts[0] is None else torch.cat(parts)

    return Plan(
        visible=cat("visible"),
        predict=cat("predict"),
        visible_valid=cat("visible_valid"),
        predict_valid=cat("predict_valid"),
        counted=cat("counted"),
        rows=torch.cat([samples if plan.rows is None else plan.rows for plan in plans]),
    )
