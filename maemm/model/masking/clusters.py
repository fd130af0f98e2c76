"""Masks by the clusters that the encoder's own features form (self-guided MAE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count
from maemm.model.masking.course import Course, Scheduled, read_course
from maemm.model.masking.cut import normalised_cut
from maemm.model.masking.guided import GuidedMasking, by_valid, hidden_last, highest
from maemm.model.masking.ratio import Ratio, read_ratio


class Clusters(GuidedMasking):
    """Hide the cluster of the main object, but for a few hint tokens (self-guided MAE): our reading of the paper.

    The paper (NeurIPS 2024) has no published code. Until ``begin`` masks are random. Then the features of all tokens,
    from a pass of the encoder without gradient, are cut in two (normalised cut of their cosines), one side is the
    object, and the tokens that are closer to its mean than to that of the other side come first to be hidden. Of those,
    ``hints`` stay visible, and as many others are hidden, so that counts are exact: those of ``count``. Both are chosen
    by the noise of ``random``, so that masks of hints 1, and those before ``begin``, are its masks, bit for bit.
    Progress is a fraction of the training: guidance from epoch 50 of 800 is 0.0625. Validation draws masks as at its
    beginning, ``maemm show`` as at its end.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        begin: fraction of the training that is done when guidance begins
        hints: fraction of the hidden that chance replaces; {start, end, over, shape}: over the training from begin on;
            null: from 0.1 to 0, along a line
        object: the side of the cut that is hidden: the smaller one, or the inner one, with less of the grid's border
        count: how the ratio is rounded to a number of tokens
    """

    guide = "features"

    def __init__(
        self,
        *,
        ratio: Ratio = 0.75,
        begin: Fraction = 0.0625,
        hints: Scheduled | None = None,
        object: Literal["smaller", "inner"] = "smaller",
        count: Count = "floor_visible",
    ):
        self.ratio, self.begin, self.object, self.count = read_ratio(ratio), begin, object, count
        self.hints = read_course(Course(start=0.1, end=0.0, shape="linear") if hints is None else hints)

    def _done(self, progress: float) -> float:
        """The fraction of the guided part of the training that is done."""
        rest = 1 - self.begin
        return (progress - self.begin) / rest if rest else 1.0

    def _hints(self, progress: float) -> float:
        return self.hints.at(self._done(progress))

    def guides(self, progress: float) -> bool:
        return progress >= self.begin and self._hints(progress) < 1

    def order(self, name: str, tokens: Tokens, rng: Rng, guide: Tensor, rank: Tensor, hidden_of: list[int]) -> Tensor:
        features, hints = guide.float(), self._hints(rng.progress)
        side = normalised_cut(features, tokens.valid)
        valid = torch.ones_like(side) if tokens.valid is None else tokens.valid
        if self.object == "inner":
            counted = valid & _border(name, tokens.grid, side.device)
            share = (side & counted).sum(1) * (valid & ~side).sum(1), (~side & counted).sum(1) * (valid & side).sum(1)
        else:
            share = (side & valid).sum(1), (~side & valid).sum(1)
        of_object = torch.where((share[0] <= share[1])[:, None], side, ~side) & valid
        closeness = nearer_to(features, of_object, valid & ~of_object)
        masked = highest(closeness, tokens.valid, by_valid(tokens, hidden_of))
        sure = by_valid(tokens, lambda n: hidden_of[n] - int(hints * hidden_of[n]))
        return hidden_last(rank, tokens.valid, None, highest(rank.float(), masked, sure))

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        lines = super().notes(tokens, rng)
        hints = self.hints.described(self._done(rng.progress), "the rest")
        for name in tokens:
            lines.setdefault(name, []).append(
                f"random until {100 * self.begin:g} % of the training, then clusters with hints {hints}"
            )
        return lines


def nearer_to(features: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Cosine to the mean of the tokens ``near`` (B, N) bool less that to the mean of those ``far``: (B, N) float32."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    cosines = []
    for members in (near, far):
        centre = torch.nn.functional.normalize(torch.where(members[..., None], unit, 0.0).sum(1), dim=-1)
        cosines.append((unit * centre[:, None]).sum(-1))
    return cosines[0] - cosines[1]


def _border(name: str, grid: Sequence[int] | None, device: torch.device) -> Tensor:
    """(N,) bool: cells at the ends of any axis."""
    if grid is None:
        raise MaemmError(f"object: inner needs tokens on a grid (modalities.{name}.masking.object); choose smaller")
    border = torch.zeros(1, dtype=torch.bool, device=device)
    for side in grid:
        place = torch.arange(side, device=device)
        ends = (place == 0) | (place == side - 1)
        border = (border[:, None] | ends).flatten()
    return border
