"""The masked reconstruction loss."""

from __future__ import annotations

from torch import Tensor, nn

from maemm.contract import Objective, Output, Plan, Term
from maemm.contract.options import NonNegative


class Reconstruct(Objective):
    """The modality's loss, averaged over predicted tokens (weighted by ``Plan.counted``); a term per modality (MAE, 3).

    Options
        weight: of all terms in the loss
        weights: further factors by modality, {name: factor}
    """

    def __init__(self, name: str, *, weight: NonNegative = 1.0, weights: dict[str, NonNegative] | None = None):
        super().__init__()
        self.name, self.weight, self.weights = name, weight, weights or {}

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        counts = self.counts(out.plans)
        return {
            f"{self.name}.{name}": Term(
                (loss * out.plans[name].counted).sum(),
                counts[f"{self.name}.{name}"],
                self.weight * self.weights.get(name, 1.0),
            )
            for name, loss in out.loss.items()
        }

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {f"{self.name}.{name}": plan.counted.sum() for name, plan in plans.items()}
