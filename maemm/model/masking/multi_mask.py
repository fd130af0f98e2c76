"""Several masks of one sample: it is read, decoded and cut into tokens once, and trained on k times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng


class MultiMask(Masking):
    """Draw ``masks_per_sample`` plans of another masking for every sample (data2vec 2.0, section 3.2).

    The rows of the plan are the first plan of all samples, then the second, and so on.

    Options
        masks_per_sample: plans of each sample
        masking: the masking that draws one, a name or {type: name, options}
    """

    def __init__(self, *, masks_per_sample: int = 4, masking: str | dict[str, Any] = "random"):
        from maemm.registry.make import make  # build knows the maskings of this package

        if masks_per_sample < 1:
            raise MaemmError(f"masks_per_sample is {masks_per_sample} (masking.masks_per_sample); give 1 or more")
        self.masks_per_sample = masks_per_sample
        self.masking: Masking = make("maskings", masking, where="masking.masking")
        self.guide = self.masking.guide

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        drawn = [self.masking(tokens, rng.fold_in("several", k), guides) for k in range(self.masks_per_sample)]
        return {name: _joined([plans[name] for plans in drawn], one.batch) for name, one in tokens.items()}


def _joined(plans: list[Plan], batch: int) -> Plan:
    """Plans of the same samples -> one plan with all their rows."""
    first = plans[0]
    own = torch.arange(batch, device=first.visible.device)
    rows = torch.cat([own if one.rows is None else one.rows for one in plans])

    def stacked(name: str) -> Tensor | None:
        parts = [getattr(one, name) for one in plans]
        return None if parts[0] is None else torch.cat(parts)

    names = ("visible", "predict", "visible_valid", "predict_valid", "counted")
    return replace(first, rows=rows, **{name: stacked(name) for name in names})
