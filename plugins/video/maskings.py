"""Maskings of clips: tubes, whole frames, and VideoMAE v2's choice of the tokens that are decoded."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count, visible_count
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio

from .running_cell import running_cell


class _OnClips(RatioMasking):
    """Base class: subclasses choose the visible tokens of the grid (slots, area); the others are hidden.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        count: how the ratio becomes a number of tokens
        decode: fraction of all tokens that the decoder predicts, in running cells: 0.25, 0.5 or 0.75 (VideoMAE v2);
            null: all hidden tokens
        decode_visible: running cells also decode visible tokens, from mask tokens and without counting them in the
            loss, as published; false: hidden ones only
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.9,
        count: Count = "floor_hidden",
        decode: Fraction | None = None,
        decode_visible: bool = True,
    ):
        if decode not in (None, 0.25, 0.5, 0.75):
            raise MaemmError(f"decode is {decode} (masking.decode); running cells allow 0.25, 0.5, 0.75 or null")
        self.ratio, self.count, self.decode, self.decode_visible = read_ratio(ratio), count, decode, decode_visible

    @abstractmethod
    def visible(self, name: str, slots: int, area: int, rng: Rng, device: torch.device) -> Tensor:
        """(R, V) int64 flat indices of the visible tokens, ascending."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        if tokens.grid is None or len(tokens.grid) != 3 or tokens.valid is not None:
            raise MaemmError(
                f"this masking needs whole clips on a grid of time, height, width (modalities.{name}.masking); "
                "use random for other signals"
            )
        slots, area = tokens.grid[0], tokens.grid[1] * tokens.grid[2]
        device = tokens.values.device
        visible = self.visible(name, slots, area, rng, device)
        hidden = torch.ones(len(visible), tokens.count, dtype=torch.bool, device=device).scatter_(1, visible, False)
        if self.decode is None:
            return Plan(visible, _indices(hidden, tokens.count - visible.shape[1]))
        start = (rng.uniform(f"mask/{name}/cell", device=device) * 4).long()
        decoded = ~running_cell(tokens.grid, 1 - self.decode, start, f"modalities.{name}.masking")
        if self.decode_visible:
            return Plan(visible, _indices(decoded, round(self.decode * tokens.count)))
        return _ragged(visible, decoded & hidden)


class Tube(_OnClips):
    """Hide the same positions in every time slot, so that nothing can be copied from another frame (VideoMAE).

    The ratio applies to one slot: of 196 positions, 0.9 hides 176.
    """

    def visible(self, name: str, slots: int, area: int, rng: Rng, device: torch.device) -> Tensor:
        count = visible_count(area, self.ratio_of(name, rng), self.count)
        position = _smallest(rng.uniform(f"mask/{name}", area, device=device), count)
        return (position[:, None] + torch.arange(slots, device=device)[:, None] * area).flatten(1)


class Frame(_OnClips):
    """Hide whole time slots (MAE-ST, "time-only"). The ratio applies to the slots."""

    def visible(self, name: str, slots: int, area: int, rng: Rng, device: torch.device) -> Tensor:
        ratio = self.ratio_of(name, rng)
        count = visible_count(slots, ratio, self.count)
        if count == 0:
            raise MaemmError(
                f"ratio {ratio:g} leaves none of {slots} slots visible (modalities.{name}.masking); lower it"
            )
        slot = _smallest(rng.uniform(f"mask/{name}", slots, device=device), count)
        return (slot[..., None] * area + torch.arange(area, device=device)).flatten(1)


def _smallest(noise: Tensor, count: int) -> Tensor:
    """(R, n) -> (R, count) int64: the indices of the smallest values, ascending."""
    return noise.argsort(stable=True, dim=1)[:, :count].sort(1).values


def _indices(chosen: Tensor, count: int) -> Tensor:
    """(R, N) bool with ``count`` True in every row -> (R, count) int64, ascending."""
    index = torch.arange(chosen.shape[1], device=chosen.device)
    return torch.where(chosen, index, chosen.shape[1]).sort(1).values[:, :count]


def _ragged(visible: Tensor, chosen: Tensor) -> Plan:
    """A plan whose rows may predict different numbers of tokens: shorter rows repeat their last token."""
    count = chosen.sum(1, keepdim=True)
    index = _indices(chosen, int(count.max()))
    valid = torch.arange(index.shape[1], device=index.device) < count
    last = index.gather(1, (count - 1).clamp(min=0)).clamp(max=chosen.shape[1] - 1)
    return Plan(visible, torch.where(valid, index, last), predict_valid=None if bool(valid.all()) else valid)
