"""Features of different samples are kept apart, so that they do not collapse (U-MAE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maemm.contract import Latents, ModalityInput, Objective, Output, Plan, Term
from maemm.contract.errors import MaemmError
from maemm.contract.exact import exact_matmul
from maemm.contract.options import NonNegative
from maemm.model.collectives import all_reduce_sum
from maemm.model.model import Model
from maemm.model.pooling import pool_and_norm, pool_tokens
from maemm.model.random_layers import random_layers


class Uniformity(Objective):
    """The mean of (z_a . z_b)^2 over all pairs of rows of the global batch (U-MAE, Zhang et al. 2022, section 4).

    z is the pooled feature of the masked pass, of norm 1; a pair of a row with itself is one of them. 1: all features
    are the same; 1 / min(B, D): they fill the space. A term per modality. As the sum is |Z' Z|^2, a row needs no other
    row but the (D, D) matrix Z' Z of the batch, which ranks add up: with micro-batches the encoder runs over all of
    them once more, without gradient, before the first forward pass. The gradient is that of one big batch.

    Options
        weight: of all terms in the loss. Published code keeps of its gradient the part of its own GPU: on 8 GPUs its
            0.01 is a weight of 0.00125
        pool: cls, or mean over the visible tokens
        norm: of the pooled feature: none; again, the encoder's final norm a second time (published code, with cls);
            own, a layer norm of its own (published code, with mean)
        per_micro_batch: with micro-batches, compare the samples of each alone, without the second pass
    """

    coupled = True

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 0.01,
        pool: Literal["cls", "mean"] = "cls",
        norm: Literal["none", "again", "own"] = "again",
        per_micro_batch: bool = False,
    ):
        super().__init__()
        self.name, self.weight, self.pool, self.kind = name, weight, pool, norm
        self.per_micro_batch = per_micro_batch

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` for the pool "cls" of an encoder without class tokens."""
        if self.pool == "cls" and getattr(model.encoder, "prefix", None) is None:
            raise MaemmError(
                f"objectives.{self.name} compares class tokens, and the encoder has none (encoder.prefix); set it to "
                f"1, or objectives.{self.name}.pool=mean"
            )
        if self.kind == "own":
            self.norms = nn.ModuleDict({name: nn.LayerNorm(model.encoder.dim, eps=1e-6) for name in model.modalities})
            self.norms.requires_grad_(self.weight > 0)

    # ------------------------------------------------------------------------------------------------- the features
    def _features(self, latents: Latents, name: str, plan: Plan, model: Model) -> tuple[Tensor, Tensor]:
        """(R, D) of norm 1, and (R,) 1 where a row sees anything of this modality; other rows are 0."""
        if not self.weight:  # nothing depends on it
            tokens, prefix = ({key: x.detach() for key, x in part.items()} for part in (latents.tokens, latents.prefix))
            latents = Latents(tokens, prefix)
        if self.kind == "own":
            pooled = self.norms[name](pool_tokens(latents, name, plan, self.pool))
        else:
            when = "after" if self.kind == "again" else "before"
            pooled = pool_and_norm(latents, name, plan, self.pool, when, model.encoder.norm_of(name))
        with torch.autocast(pooled.device.type, enabled=False):
            present = pooled.new_ones(len(pooled), dtype=torch.float32)
            if plan.visible_valid is not None:
                present = plan.visible_valid.any(1).float()
            return F.normalize(pooled.float(), dim=-1) * present[:, None], present

    def over_batch(self, model: Model, inputs: Sequence[dict[str, ModalityInput]]) -> dict[str, Any]:
        """{modality: :func:`_moments` of all micro-batches of all ranks}, {} where there is one micro-batch.

        Raises :class:`MaemmError` where the two passes of the encoder would differ by chance.
        """
        if len(inputs) == 1 or self.per_micro_batch:
            return {}
        if layers := random_layers(model.encoder, *model.modalities.values()):
            raise MaemmError(
                f"objectives.{self.name} encodes all micro-batches beforehand, and {layers[0]} gives other features in "
                f"each pass (train.micro_batch); switch it off, or set objectives.{self.name}.per_micro_batch=true"
            )
        sums: dict[str, Tensor] = {}
        for micro in inputs:
            latents = model.encode_rows(micro)
            for name, x in micro.items():
                own = _moments(*self._features(latents, name, x.plan, model))
                sums[name] = sums[name] + own if name in sums else own
        return {name: all_reduce_sum(own) for name, own in sums.items()}

    # ----------------------------------------------------------------------------------------------------- the loss
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        latents, counts, terms = Latents(out.encoded, out.prefix), self.counts(out.plans), {}
        for name, x in out.inputs.items():
            z, present = self._features(latents, name, x.plan, model)
            with torch.autocast(z.device.type, enabled=False):
                moments = x.of_batch.get(self.name)
                if moments is None:  # this is the whole batch of this rank
                    moments = all_reduce_sum(_moments(z.detach(), present))
                products, rows = moments[:-1].view(z.shape[1], z.shape[1]), moments[-1]
                own = (exact_matmul(z, products) * z).sum()  # of every pair with one of these rows
                # A row is in its pairs as the first and as the second: the gradient is twice that with Z' Z fixed.
                total = (2.0 * own - own.detach()) / rows.clamp(min=1)
            key = f"{self.name}.{name}"
            terms[key] = Term(total, counts[key], self.weight)
        return terms

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """1, of features that are all the same."""
        return {name: Term(count, count) for name, count in self.counts(out.plans).items()}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        counts = {}
        for name, plan in plans.items():
            rows = plan.counted.new_full((), float(len(plan.visible)))
            counts[f"{self.name}.{name}"] = (
                rows if plan.visible_valid is None else plan.visible_valid.any(1).sum().float()
            )
        return counts


def _moments(z: Tensor, present: Tensor) -> Tensor:
    """Features (R, D) -> (D * D + 1,): Z' Z, and the number of rows that are there. Those of batches add up."""
    with torch.autocast(z.device.type, enabled=False):
        return torch.cat([exact_matmul(z.T, z).flatten(), present.sum()[None]])
