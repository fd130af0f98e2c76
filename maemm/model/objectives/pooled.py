"""The class token predicts what all tokens have in common."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from maemm.contract import Modality, ModalityInput, Objective, Output, Plan, Target, Term
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegative, Positive
from maemm.model.blocks import init_linear
from maemm.model.model import Model
from maemm.model.targets.losses import FeatureLoss, Reduction, feature_loss


class Pooled(Objective):
    """The last class token is compared with the mean of the target over all tokens (data2vec 2.0, section 3.2).

    The mean over all rows of plans; a term per modality. Where the target is not as wide as the encoder, a linear layer
    lies between. With weight 0 it is computed and logged, and nothing else depends on it.

    Options
        weight: of all terms in the loss. Published code sums over the rows of a GPU: its 0.01 is a weight of 0.01 times
            their number
        loss: mse, smooth_l1, l1 or cosine
        beta: error from which smooth_l1 is linear
        reduction: over the values of the target: sum_by_root, their sum / sqrt(D), or mean
    """

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        loss: FeatureLoss = "mse",
        beta: Positive = 1.0,
        reduction: Reduction = "sum_by_root",
    ):
        super().__init__()
        self.name, self.weight, self.kind, self.beta, self.reduction = name, weight, loss, beta, reduction

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` for an encoder without class tokens."""
        if getattr(model.encoder, "prefix", None) is None:
            raise MaemmError(
                f"objectives.{self.name} compares a class token, and the encoder has none (encoder.prefix); set it to 1"
            )
        self.heads = nn.ModuleDict()
        parts: dict[str, Modality | Target] = {**dict(model.modalities.items()), **dict(model.targets.items())}
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            for name, part in parts.items():
                width = part.output_dim()
                if width != model.encoder.dim:
                    self.heads[name] = nn.Linear(model.encoder.dim, width)
            self.heads.apply(init_linear)
        self.heads.requires_grad_(self.weight > 0)  # the norm of the gradient is that of what learns

    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        counts = self.counts(out.plans)
        terms = {}
        for name, x in out.inputs.items():
            token = out.prefix[name if name in out.prefix else "joint"][:, -1]
            pred = self.heads[name](token) if name in self.heads else token
            with torch.autocast(pred.device.type, enabled=False):
                target = self._mean_target(name, x, model)
                losses = feature_loss(pred, target, self.kind, beta=self.beta, reduction=self.reduction)
            key = f"{self.name}.{name}"
            terms[key] = Term(losses.sum(), counts[key], self.weight)
        return terms

    @torch.no_grad()
    def _mean_target(self, name: str, x: ModalityInput, model: Model) -> Tensor:
        """The mean over the valid tokens of each sample, for each row of the plan (R, O)."""
        tokens = replace(x.tokens, rows=None)
        index = tokens.all_indices()
        if name in model.targets:
            target = model.targets[name](replace(x, tokens=tokens, plan=Plan(index, index[:, :0])), index)
        else:
            target = model.modalities[name].target(tokens, index)
        weights = target.new_ones(target.shape) if tokens.valid is None else tokens.valid[..., None].expand_as(target)
        if name not in model.targets and tokens.known is not None:
            weights = weights * tokens.known
        weights = weights.to(target.dtype)
        mean = (torch.where(weights > 0, target, 0.0) * weights).sum(1) / weights.sum(1).clamp(min=1)
        return mean if x.plan.rows is None else mean[x.plan.rows]

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {
            f"{self.name}.{name}": plan.counted.new_full((), float(len(plan.visible))) for name, plan in plans.items()
        }
