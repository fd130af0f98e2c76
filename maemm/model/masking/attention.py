"""Masks by the scores of the first attention (SMA)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from maemm.contract import FirstAttention, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count
from maemm.model.masking.course import Scheduled, read_course
from maemm.model.masking.guided import GuidedMasking, by_valid, hidden_last, highest
from maemm.model.masking.ratio import Ratio, read_ratio


def attention_of_queries(
    scores: Tensor, valid: Tensor | None = None, asking: Tensor | None = None, head: Tensor | None = None
) -> Tensor:
    """Attention that each token receives from some queries, added up (SMA, section 3.2): (B, N) float32.

    ``scores`` (B, H, R, N): before the softmax over tokens. ``valid`` (B, N) bool: tokens that are not receive nothing.
    ``asking`` (B, R) bool: queries that count; None: all. ``head`` (B, R) int64: the head that counts for each query;
    None: the mean over heads.
    """
    scores = scores.float()
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], torch.finfo(torch.float32).min)
    weights = scores.softmax(-1)
    if head is None:
        of_query = weights.mean(1)
    else:
        of_query = weights.gather(1, head[:, None, :, None].expand(-1, 1, -1, weights.shape[-1])).squeeze(1)
    if asking is not None:
        of_query = of_query * asking[..., None]
    return of_query.sum(1)


class Attention(GuidedMasking):
    """Hide the tokens that receive most attention in the encoder's first attention (SMA, section 3.2).

    A few queries are drawn for each sample; their attention, after the softmax over the tokens, is averaged over heads
    and added up, and the tokens with the largest sums are hidden. The published model asks with learned latents,
    which here are an encoder's class tokens (``queries: prefix``); queries of tokens are a reading for ViTs. Guidance
    costs the embedding of all tokens and the first linear layer. In ragged batches only valid tokens ask, are asked and
    are counted.

    ``share`` is how much attention decides, 1 - c for the published noise scale c, and ``select_initial_ratio`` (rho)
    how much chance has where share is 0. ``noise: rest``, as published for inputs of varying length: of r n hidden
    tokens r (1 - rho c) n are those of most attention, the others drawn from the rest. ``noise: subset``, as published
    for fixed lengths: all are drawn from the (r + (rho - r) c) n tokens of most attention. With rho 1 masks of share 0
    are those of ``random``, bit for bit, and cost nothing. Validation draws masks as at the beginning of the training,
    ``maemm show`` as at its end.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        queries: whose attention counts: tokens, prefix (class tokens) or all
        num_per_query: hidden tokens for each query that is drawn, so that R = round(r N / num_per_query), at least 1
            (published 576, of up to 36864 pixels)
        heads: mean over heads, or a random one for each query
        share: how much attention decides; {start: 0, end: 1, over: 0.25, shape: cosine} is the published schedule of a
            quarter of the training
        select_initial_ratio: how much chance decides where share is 0
        noise: what chance draws from where share is below 1: the rest, or a subset that attention chose
        count: how the ratio is rounded to a number of tokens; published: round_hidden, for noise rest that of each part
    """

    guide = "first_attention"

    def __init__(
        self,
        *,
        ratio: Ratio = 0.75,
        queries: Literal["tokens", "prefix", "all"] = "tokens",
        num_per_query: PositiveInt = 16,
        heads: Literal["mean", "random"] = "mean",
        share: Scheduled = 1.0,
        select_initial_ratio: Fraction = 1.0,
        noise: Literal["rest", "subset"] = "rest",
        count: Count = "floor_visible",
    ):
        self.ratio, self.queries, self.num_per_query, self.heads = read_ratio(ratio), queries, num_per_query, heads
        self.share, self.initial, self.noise, self.count = read_course(share), select_initial_ratio, noise, count
        if (
            noise == "subset"
            and isinstance(self.ratio, (int, float))
            and self.initial < self.ratio
            and self._scale_most() > 0
        ):
            raise MaemmError(
                f"a subset of {self.initial:g} of the tokens has too few for the ratio {self.ratio:g} "
                "(masking.select_initial_ratio); give at least the ratio"
            )

    def _scale_most(self) -> float:
        return 1 - min(self.share.start, self.share.end)

    def _chance(self, progress: float) -> float:
        """The published noise scale c."""
        return 1 - self.share.at(progress)

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        """Published rounding, of each part by itself, changes counts by one while the share changes."""
        shapes = super().shapes(tokens)
        changes = self.share.start != self.share.end and self.noise == "rest" and self.count == "round_hidden"
        if not changes or shapes is None:
            return shapes
        return shapes * math.prod(3 if x.valid is None else 9 for x in tokens.values())

    def guides(self, progress: float) -> bool:
        return self.initial * self._chance(progress) < 1

    def hidden_of(self, ratio: float, progress: float, most: int) -> list[int]:
        chance = self.initial * self._chance(progress)
        if self.count == "round_hidden" and self.noise == "rest":  # as published
            return [round(n * ratio * (1 - chance)) + round(n * ratio * chance) for n in range(most + 1)]
        return super().hidden_of(ratio, progress, most)

    def order(
        self, name: str, tokens: Tokens, rng: Rng, guide: FirstAttention, rank: Tensor, hidden_of: list[int]
    ) -> Tensor:
        ratio, chance = self.ratio_of(name, rng), self._chance(rng.progress)
        index, asking = self._drawn_queries(name, tokens, rng, guide, ratio)
        head = None
        if self.heads == "random":
            uniform = rng.uniform(f"mask/{name}/heads", index.shape[1], device=index.device)
            head = (uniform * guide.queries.shape[1]).long()
        received = attention_of_queries(guide.scores(index), tokens.valid, asking, head)
        if self.noise == "subset":
            wide = ratio + (self.initial - ratio) * chance
            most = by_valid(tokens, lambda n: max(round(n * wide), hidden_of[n]))
            return hidden_last(rank, tokens.valid, highest(received, tokens.valid, most), None)
        share = 1 - self.initial * chance
        if self.count == "round_hidden":
            sure = by_valid(tokens, lambda n: round(n * ratio * share))
        else:
            sure = by_valid(tokens, lambda n: round(hidden_of[n] * share))
        return hidden_last(rank, tokens.valid, None, highest(received, tokens.valid, sure))

    def _drawn_queries(
        self, name: str, tokens: Tokens, rng: Rng, guide: FirstAttention, ratio: float
    ) -> tuple[Tensor, Tensor | None]:
        """(B, R) the queries of each sample, without replacement, and which of them are valid, (B, R) bool or None."""
        total, prefix = guide.queries.shape[2], guide.prefix
        first, last = {"tokens": (prefix, total), "prefix": (0, prefix), "all": (0, total)}[self.queries]
        if first == last:
            raise MaemmError(
                f"the encoder has no queries of {'class tokens' if self.queries == 'prefix' else 'tokens'} "
                f"(modalities.{name}.masking.queries); choose {'tokens' if self.queries == 'prefix' else 'prefix'}"
            )
        count = min(max(round(tokens.count * ratio / self.num_per_query), 1), last - first)
        noise = rng.uniform(f"mask/{name}/queries", last - first, device=tokens.values.device)
        if tokens.valid is None or self.queries == "prefix":
            return first + noise.argsort(stable=True, dim=1)[:, :count], None
        valid = tokens.valid
        if first < prefix:  # class tokens always ask
            valid = torch.cat([valid.new_ones(len(valid), prefix), valid], 1)
        index = noise.masked_fill(~valid, torch.inf).argsort(stable=True, dim=1)[:, :count]
        return first + index, valid.gather(1, index)

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        lines = super().notes(tokens, rng)
        for name in tokens:
            lines.setdefault(name, []).append(f"share of attention {self.share.described(rng.progress)}")
        return lines
