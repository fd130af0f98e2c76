"""The contrastive loss between augmented views of a sample (SimCLR, CAN)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maemm.contract import Latents, Objective, Output, Plan, Term
from maemm.contract.errors import MaemmError
from maemm.contract.exact import exact_matmul
from maemm.contract.options import NonNegative, NonNegativeInt, Positive, PositiveInt
from maemm.model.blocks import init_linear
from maemm.model.collectives import gather_rows
from maemm.model.model import Model
from maemm.model.pooling import pool_tokens


class Views(Objective):
    """InfoNCE between the views of a sample that ``data.aug_repeats`` reads: 2 give pairs, as in SimCLR and CAN (Mishra
    et al. 2022, section 3.2; a reading, as no code was published).

    The mean over its visible tokens, passed through a projector, is the vector of a row of a plan. For each row another
    row of the same sample, in another augmentation or with another mask, is to be told from the rows of all other
    samples of all ranks; the mean over all such pairs. A term for each modality, and one of weight 0,
    ``NAME.MODALITY_accuracy``: how often the most similar other row is of the same sample. Validation, which has one
    view of each sample, has no term.

    Options
        weight: of the terms in the loss
        temperature: divides the cosine similarities
        pool: of the visible tokens: mean or cls
        hidden: width of the projector's hidden layer, of which ReLU is taken; 0: no projector
        dim: values that the projector gives
        per_micro_batch: allow gradient accumulation; then only samples of the same micro-batch are told apart
    """

    coupled = True

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 0.03,
        temperature: Positive = 0.1,
        pool: Literal["mean", "cls"] = "mean",
        hidden: NonNegativeInt = 4096,
        dim: PositiveInt = 128,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        self.name, self.weight, self.temperature, self.pool = name, weight, temperature, pool
        self.hidden, self.dim, self.per_micro_batch = hidden, dim, per_micro_batch
        self.repeats, self.of_recipe = 1, False

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` without class tokens for the pool "cls", and where data sets differ in views."""
        data = model.recipe.get("data") or {}
        self.repeats, self.of_recipe = data.get("aug_repeats") or 1, bool(data)
        if any((own.get("aug_repeats") or self.repeats) != self.repeats for own in (data.get("mix") or {}).values()):
            raise MaemmError(
                f"objectives.{self.name} needs as many views of every sample (data.mix); leave out aug_repeats of "
                "single data sets, and set data.aug_repeats"
            )
        if self.pool == "cls" and getattr(model.encoder, "prefix", None) is None:
            raise MaemmError(
                f"objectives.{self.name} compares class tokens, and the encoder has none (encoder.prefix); set it to "
                f"1, or objectives.{self.name}.pool=mean"
            )
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            if self.hidden:
                self.projectors = nn.ModuleDict({name: self._projector(model.encoder.dim) for name in model.modalities})
                self.projectors.apply(init_linear).requires_grad_(self.weight > 0)

    def _projector(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.dim))

    # ------------------------------------------------------------------------------------------------------ the loss
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        counts, terms = self.counts(out.plans), {}
        for name, plan in out.plans.items() if self.training else ():
            vectors = self._vectors(out, name, plan)
            with torch.autocast(vectors.device.type, enabled=False):
                loss, hits = self._compare(vectors, *self._samples(plan))
            terms[f"{self.name}.{name}"] = Term(loss, counts[f"{self.name}.{name}"], self.weight)
            terms[f"{self.name}.{name}_accuracy"] = Term(hits, counts[f"{self.name}.{name}_accuracy"], 0.0)
        return terms

    def _vectors(self, out: Output, name: str, plan: Plan) -> Tensor:
        """(R, dim), of norm 1 in float32."""
        pooled = pool_tokens(Latents(out.encoded, out.prefix), name, plan, self.pool)
        pooled = pooled if self.weight else pooled.detach()
        return F.normalize((self.projectors[name](pooled) if self.hidden else pooled).float(), dim=-1)

    def _samples(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """(R,) the sample of each row on this rank, and whether it sees anything."""
        rows = torch.arange(len(plan.visible), device=plan.visible.device) if plan.rows is None else plan.rows
        present = torch.ones_like(rows) if plan.visible_valid is None else plan.visible_valid.any(1).long()
        return rows // self.repeats, present

    def _compare(self, own: Tensor, sample: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows: of the mean cross-entropy of their positives, and of how often the best is a positive."""
        every, first = gather_rows(own)
        others, _ = gather_rows(torch.stack([sample, present], 1))
        place = torch.arange(len(every), device=own.device)
        mine = torch.arange(len(own), device=own.device) + first
        same_rank = (place // len(own))[None] == (mine // len(own))[:, None]
        there = (present[:, None] * others[None, :, 1]).bool()
        same = same_rank & (others[None, :, 0] == sample[:, None])
        positive, negative = same & there & (place[None] != mine[:, None]), ~same & there
        scores = exact_matmul(own, every.T) / self.temperature
        lowest = torch.finfo(scores.dtype).min  # not -inf, of which rows without a negative would get NaN
        rest = scores.masked_fill(~negative, lowest).logsumexp(1, keepdim=True)
        losses = torch.where(positive, torch.logaddexp(scores, rest) - scores, 0.0)
        count = positive.sum(1)
        best = scores.masked_fill(~(positive | negative), lowest).argmax(1, keepdim=True)
        hits = positive.gather(1, best).squeeze(1)
        return (losses.sum(1) / count.clamp(min=1)).sum(), hits.sum().float()

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """Of vectors that are all the same: the logarithm of how many rows each is to be told from."""
        counts, terms = self.counts(out.plans), dict[str, Term | None]()
        for name, plan in out.plans.items() if self.training else ():
            same = torch.ones(len(plan.visible), 1, device=plan.visible.device)
            for key, value in zip(("", "_accuracy"), self._compare(same, *self._samples(plan)), strict=True):
                terms[f"{self.name}.{name}{key}"] = Term(value, counts[f"{self.name}.{name}{key}"])
        return terms

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        counts: dict[str, Tensor] = {}
        for name, plan in plans.items() if self.training else ():
            if self.repeats == 1 and plan.rows is None and self.of_recipe:
                raise MaemmError(
                    f"objectives.{self.name} compares views, and each sample has one (data.aug_repeats); set it to 2"
                )
            sample, present = self._samples(plan)
            count = self._with_partner(sample, present).sum().float()
            counts |= {f"{self.name}.{name}": count, f"{self.name}.{name}_accuracy": count}
        return counts

    def _with_partner(self, sample: Tensor, present: Tensor) -> Tensor:
        """(R,) bool: rows that are there, as another of their sample is."""
        same = (sample[:, None] == sample[None]) & (present[:, None] * present[None]).bool()
        return same.sum(1) > 1
