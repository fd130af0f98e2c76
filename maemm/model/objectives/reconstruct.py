"""The masked reconstruction loss."""

from __future__ import annotations

from torch import Tensor

from maemm.contract import Objective, Output, Plan, Term
from maemm.contract.options import NonNegative
from maemm.model.model import Model
from maemm.model.objectives.means import Mean, mean_count, mean_term


class Reconstruct(Objective):
    """The modality's loss, averaged over predicted tokens (weighted by ``Plan.counted``); a term per modality (MAE, 3).

    Options
        weight: of all terms in the loss
        weights: further factors by modality, {name: factor}
        mean: tokens: over all predicted tokens of the batch; samples: over those of each row, then over the rows that
            predict any, so that rows with many and with few of them weigh the same (MultiMAE)
    """

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        weights: dict[str, NonNegative] | None = None,
        mean: Mean = "tokens",
    ):
        super().__init__()
        self.name, self.weight, self.weights, self.mean = name, weight, weights or {}, mean
        self.not_predicted: set[str] = set()  # modalities that are only encoded

    def connect(self, model: Model) -> None:
        self.not_predicted = {name for name, only in model.only.items() if only == "encode"}

    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        return {
            f"{self.name}.{name}": mean_term(
                loss, out.plans[name].counted, self.mean, self.weight * self.weights.get(name, 1.0)
            )
            for name, loss in out.loss.items()
        }

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {
            f"{self.name}.{name}": mean_count(plan.counted, self.mean)
            for name, plan in plans.items()
            if name not in self.not_predicted
        }
