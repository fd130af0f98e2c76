"""The contrastive loss between two streams (InfoNCE; CAV-MAE, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional as F

from maemm.contract import Objective, Output, Plan, Term
from maemm.contract.errors import MaemmError
from maemm.contract.exact import exact_matmul
from maemm.contract.options import NonNegative, Positive
from maemm.model.collectives import gather_rows
from maemm.model.pooling import mean_of_tokens

LARGEST_SCALE = 100.0  # 1 / learned temperature at most (CLIP, section 2.5)


@dataclass(frozen=True)
class Rows:
    """The vectors of one stream, on this rank and on all ranks."""

    own: Tensor  # (R, D), of norm 1
    all: Tensor  # (ranks * R, D)


class Contrastive(Objective):
    """InfoNCE: each sample's vector of the second stream is classified among the first-stream vectors of all ranks.

    The vector of a stream is the mean of its visible tokens. Samples that lack one of the two modalities are neither
    queries nor candidates; other plans of the same sample are no candidates. The term ``NAME_accuracy``, of weight 0,
    is how often the right candidate has the highest score.

    Options
        pair: two streams of the encoder
        weight: of the term in the loss
        temperature: divides the cosine similarities
        learned_temperature: train it, starting at ``temperature``
        both: average both directions
        per_micro_batch: allow gradient accumulation; then only samples of the same micro-batch are candidates
    """

    coupled = True

    def __init__(
        self,
        name: str,
        *,
        pair: Annotated[Sequence[str], Len(2, 2)],
        weight: NonNegative = 0.01,
        temperature: Positive = 0.05,
        learned_temperature: bool = False,
        both: bool = False,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        if pair[0] == pair[1]:
            raise MaemmError(
                f"a contrastive loss is between two streams, not {list(pair)} (objectives.{name}.pair); name two"
            )
        self.name, self.pair, self.weight, self.both = name, tuple(pair), weight, both
        self.temperature, self.per_micro_batch = temperature, per_micro_batch
        if learned_temperature:
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        if not all(name in plans for name in self._members()):
            return {}
        count = self._present(plans).sum().float()
        return {self.name: count, f"{self.name}_accuracy": count}

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        counts = self.counts(out.plans)
        if not counts:
            return {}
        with torch.autocast(next(iter(out.streams.values())).device.type, enabled=False):
            first, second = (self._rows(out, stream) for stream in self.pair)
            present = self._present(out.plans)
            allowed, own = self._allowed(out.plans, present)
            loss, hits = self._classify(second.own, first.all, allowed, own, present)
            if self.both:
                other_loss, other_hits = self._classify(first.own, second.all, allowed, own, present)
                loss, hits = (loss + other_loss) / 2, (hits + other_hits) / 2
        accuracy = f"{self.name}_accuracy"
        return {
            self.name: Term(loss, counts[self.name], self.weight),
            accuracy: Term(hits, counts[accuracy], 0.0),
        }

    def _members(self) -> list[str]:
        return [name for stream in self.pair for name in stream.split("+")]

    def _present(self, plans: dict[str, Plan]) -> Tensor:
        """(R,) bool: rows with visible tokens of every modality of the pair."""
        masks = [plans[name].visible_valid for name in self._members()]
        visible = plans[self._members()[0]].visible
        present = torch.ones(len(visible), dtype=torch.bool, device=visible.device)
        for mask in masks:
            present = present if mask is None else present & mask.any(1)
        return present

    def _rows(self, out: Output, stream: str) -> Rows:
        if stream not in out.streams:
            names = ", ".join(out.streams) or "none"
            raise MaemmError(
                f"the encoder gives no stream {stream!r} (objectives.{self.name}.pair), but {names}; "
                "use encoder streams and add it to encoder.streams"
            )
        plans = [out.plans[name] for name in stream.split("+")]
        own = F.normalize(mean_of_tokens(out.streams[stream].float(), plans), dim=-1)
        return Rows(own, gather_rows(own)[0])

    def _allowed(self, plans: dict[str, Plan], present: Tensor) -> tuple[Tensor, Tensor]:
        """(R, ranks * R) bool: the candidates of each row, and (R,) the index of the right one."""
        rows = plans[self._members()[0]].rows
        sample = torch.arange(len(present), device=present.device) if rows is None else rows
        gathered, first = gather_rows(torch.stack([sample, present.long()], 1))
        own = torch.arange(len(present), device=present.device) + first
        rank = torch.arange(len(gathered), device=present.device) // len(present)
        same = (gathered[None, :, 0] == sample[:, None]) & (rank[None] == (own // len(present))[:, None])
        same[torch.arange(len(own), device=own.device), own] = False  # the row itself is a candidate
        return gathered[None, :, 1].bool() & ~same, own

    def _classify(
        self, queries: Tensor, keys: Tensor, allowed: Tensor, own: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the own key among the allowed ones, and how often it has the highest score."""
        scores = exact_matmul(queries, keys.T) * self._scale()
        scores = scores.masked_fill(~allowed, float("-inf"))
        # An absent row has no candidate; its scores are made finite so that its gradient is 0 and not NaN.
        scores = torch.where(present[:, None], scores, torch.zeros_like(scores))
        loss = F.cross_entropy(scores, own, reduction="none")
        hits = scores.argmax(1) == own
        return (loss * present).sum(), (hits & present).sum().float()

    def _scale(self) -> Tensor | float:
        if not hasattr(self, "log_scale"):
            return 1 / self.temperature
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)
