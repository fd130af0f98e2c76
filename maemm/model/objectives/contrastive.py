"""The contrastive loss between two streams (InfoNCE; CAV-MAE, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maemm.contract import Objective, Output, Plan, Term
from maemm.contract.errors import MaemmError
from maemm.model.collectives import gather_rows
from maemm.model.pooling import mean_of_tokens

LARGEST_SCALE = 100.0  # of a learned temperature (CLIP, section 2.5)


@dataclass(frozen=True)
class Rows:
    """One stream's vectors of this process and of all processes."""

    own: Tensor  # (R, D), of length 1
    all: Tensor  # (processes * R, D)


class Contrastive(Objective):
    """Every sample of the second stream picks its partner among all samples' first stream, over all processes.

    A stream's vector is the mean of its visible tokens. Samples that lack one of the two neither pick nor can be
    picked; plans of the same sample do not compete. A term ``NAME_accuracy``, without weight, tells how often the
    partner is found.

    Options
        pair: two streams of the encoder
        weight: of the term in the loss
        temperature: that cosines are divided by
        learned_temperature: train it, from ``temperature`` on
        both: the mean of both directions
        per_micro_batch: allow accumulation; then only the samples of one micro-batch compete
    """

    coupled = True

    def __init__(
        self,
        name: str,
        *,
        pair: Sequence[str],
        weight: float = 0.01,
        temperature: float = 0.05,
        learned_temperature: bool = False,
        both: bool = False,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        if len(pair) != 2 or pair[0] == pair[1]:
            raise MaemmError(f"a contrastive loss is between two streams, not {list(pair)} (objectives.{name}.pair)")
        if temperature <= 0:
            raise MaemmError(f"temperature {temperature} is not positive (objectives.{name}); the usual is 0.05")
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
            loss, found = self._pick(second.own, first.all, allowed, own, present)
            if self.both:
                other, also = self._pick(first.own, second.all, allowed, own, present)
                loss, found = (loss + other) / 2, (found + also) / 2
        accuracy = f"{self.name}_accuracy"
        return {
            self.name: Term(loss, counts[self.name], self.weight),
            accuracy: Term(found, counts[accuracy], 0.0),
        }

    def _members(self) -> list[str]:
        return [name for stream in self.pair for name in stream.split("+")]

    def _present(self, plans: dict[str, Plan]) -> Tensor:
        """(R,) bool: rows with visible tokens of every modality that the pair needs."""
        masks = [plans[name].visible_valid for name in self._members()]
        one = plans[self._members()[0]].visible
        present = torch.ones(len(one), dtype=torch.bool, device=one.device)
        for mask in masks:
            present = present if mask is None else present & mask.any(1)
        return present

    def _rows(self, out: Output, stream: str) -> Rows:
        if stream not in out.streams:
            known = ", ".join(out.streams) or "none"
            raise MaemmError(
                f"the encoder gives no stream {stream!r} (objectives.{self.name}.pair), but {known}; "
                "take encoder streams and name it in encoder.streams"
            )
        plans = [out.plans[name] for name in stream.split("+")]
        own = F.normalize(mean_of_tokens(out.streams[stream].float(), plans), dim=-1)
        return Rows(own, gather_rows(own)[0])

    def _allowed(self, plans: dict[str, Plan], present: Tensor) -> tuple[Tensor, Tensor]:
        """(R, all) bool: who may be picked by whom, and (R,) the number of the partner."""
        rows = plans[self._members()[0]].rows
        sample = torch.arange(len(present), device=present.device) if rows is None else rows
        everybody, first = gather_rows(torch.stack([sample, present.long()], 1))
        own = torch.arange(len(present), device=present.device) + first
        rank = torch.arange(len(everybody), device=present.device) // len(present)
        same = (everybody[None, :, 0] == sample[:, None]) & (rank[None] == (own // len(present))[:, None])
        same[torch.arange(len(own)), own] = False  # the partner itself
        return everybody[None, :, 1].bool() & ~same, own

    def _pick(
        self, queries: Tensor, keys: Tensor, allowed: Tensor, own: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of picking the own key among the allowed ones, and how often it is the nearest."""
        scores = queries @ keys.T * self._scale()
        scores = scores.masked_fill(~allowed, float("-inf"))
        # An absent row has no partner; it gets a finite score so that its gradient is 0 and not NaN.
        scores = torch.where(present[:, None], scores, torch.zeros_like(scores))
        loss = F.cross_entropy(scores, own, reduction="none")
        found = scores.argmax(1) == own
        return (loss * present).sum(), (found & present).sum().float()

    def _scale(self) -> Tensor | float:
        if not hasattr(self, "log_scale"):
            return 1 / self.temperature
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)
