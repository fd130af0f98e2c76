"""Random masking: tokens, or groups of tokens that are hidden together, are visible with equal probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Len
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegativeInt, PositiveInt
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import Count, noise_order, plan_from_hidden, plan_from_order, visible_count
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio


class Random(RatioMasking):
    """Show a random subset of the tokens; exact counts (MAE, section 3).

    At most one of ``mask_block``, ``along``, ``groups`` and ``axis_ratios`` says otherwise. Axes are those of the grid
    of tokens, from 0: time, rows, columns of clips; channels and time of signals. In ragged batches counts are those of
    what is valid.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high} for a normal distribution
            between low and high: drawn for each batch, the same for all its samples; or {start, end, over, shape}: how
            it changes over the training
        mask_block: show or hide whole blocks of this many tokens along each axis (Pixio)
        along: axes; tokens that differ in these alone are shown or hidden together: [0] hides tubes of clips (VideoMAE)
        groups: an axis; each place on it (channel, lead, group of bands) keeps exact counts of its own (ST-MEM)
        group_ratios: with groups: the ratio of each place, instead of ratio
        axis_ratios: for each axis the fraction of its places that is hidden as a whole, instead of ratio: [0.5, 0]
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.75,
        mask_block: PositiveInt = 1,
        along: Annotated[Sequence[NonNegativeInt], Len(1)] | None = None,
        groups: NonNegativeInt | None = None,
        group_ratios: Annotated[Sequence[Fraction], Len(1)] | None = None,
        axis_ratios: Annotated[Sequence[Fraction], Len(1)] | None = None,
        count: Count = "floor_visible",
    ):
        self.ratio, self.mask_block, self.count = read_ratio(ratio), mask_block, count
        if axis_ratios or group_ratios:  # instead
            self.ratio = None
        self.along, self.groups, self.group_ratios, self.axis_ratios = along, groups, group_ratios, axis_ratios
        set_ones = {
            "mask_block": mask_block > 1,
            "along": along,
            "groups": groups is not None,
            "axis_ratios": axis_ratios,
        }
        names = [name for name, value in set_ones.items() if value]
        if len(names) > 1:
            raise MaemmError(
                f"{names[0]} and {names[1]} exclude each other (masking.{names[1]}); leave out one of them"
            )
        if group_ratios and groups is None:
            raise MaemmError("group_ratios needs the axis of the groups (masking.groups); add groups: 0")

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        if self.axis_ratios:
            return self._by_axes(name, tokens, rng)
        if self.groups is not None:
            return self._by_groups(name, tokens, rng)
        if self.along:
            return self._along(name, tokens, rng)
        if self.mask_block == 1:
            noise = rng.uniform(f"mask/{name}", tokens.count, device=tokens.values.device)
        else:
            noise = self._block_noise(name, tokens, rng)
        return plan_from_order(noise_order(noise, tokens), tokens, self.ratio_of(name, rng), self.count)

    def _block_noise(self, name: str, tokens: Tokens, rng: Rng) -> Tensor:
        k = self.mask_block
        if tokens.grid is None or any(n % k for n in tokens.grid):
            raise MaemmError(
                f"grid {tokens.grid} is not a multiple of mask_block {k} (modalities.{name}.masking); use a divisor"
            )
        noise = rng.uniform(f"mask/{name}", *(n // k for n in tokens.grid), device=tokens.values.device)
        for axis in range(1, noise.ndim):
            noise = noise.repeat_interleave(k, dim=axis)
        return noise.flatten(1)  # equal inside a block; the stable sort keeps whole blocks together

    # ---- by axes of the grid
    def _along(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """Rows along some axes are hidden as a whole."""
        grid = _grid_with(name, tokens, "along", max(self.along or ()))
        axes = [axis for axis in range(len(grid)) if axis not in (self.along or ())]
        if not axes:
            raise MaemmError(
                f"tokens that differ in any of the {len(grid)} axes would be hidden together, all of them "
                f"(modalities.{name}.masking.along); leave out an axis"
            )
        together = math.prod(n for axis, n in enumerate(grid) if axis not in axes)
        sides = [grid[axis] for axis in axes]
        valid = _valid(tokens, grid).permute(
            0, *(1 + axis for axis in axes), *(1 + a for a in sorted(set(self.along or ())))
        )
        valid = valid.reshape(len(valid), math.prod(sides), together).any(-1)
        noise = rng.uniform(f"mask/{name}", math.prod(sides), device=valid.device)
        counts = self._visible_counts(valid.shape[1], self.ratio_of(name, rng))
        hidden = _hidden(noise, valid, [counts])
        shape = [n if axis in axes else 1 for axis, n in enumerate(grid)]
        hidden = hidden.view(-1, *shape).expand(-1, *grid).flatten(1)
        if tokens.valid is None:
            visible = counts[-1] * together
            return plan_from_hidden(hidden, tokens, visible, tokens.count - visible)
        most_hidden = max(n - visible for n, visible in enumerate(counts))
        return plan_from_hidden(hidden, tokens, max(counts) * together, most_hidden * together)

    def _by_groups(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """The places of an axis are drawn by themselves, each with its own ratio."""
        axis = self.groups or 0
        grid = _grid_with(name, tokens, "groups", axis)
        groups, each = grid[axis], tokens.count // grid[axis]
        ratios = list(self.group_ratios or [self.ratio_of(name, rng)] * groups)
        if len(ratios) != groups:
            raise MaemmError(
                f"group_ratios has {len(ratios)} numbers for the {groups} places of axis {axis} "
                f"(modalities.{name}.masking.group_ratios); give {groups}"
            )
        valid = _valid(tokens, grid).movedim(1 + axis, 1).flatten(2)  # (B, groups, each)
        counts = [self._visible_counts(each, ratio) for ratio in ratios]
        noise = rng.uniform(f"mask/{name}", groups, each, device=valid.device)
        others = [n for other, n in enumerate(grid) if other != axis]
        hidden = _hidden(noise, valid, counts).view(-1, groups, *others).movedim(1, 1 + axis).flatten(1)
        if tokens.valid is None:
            visible = sum(of[-1] for of in counts)
            return plan_from_hidden(hidden, tokens, visible, tokens.count - visible)
        most_hidden = sum(max(n - visible for n, visible in enumerate(of)) for of in counts)
        return plan_from_hidden(hidden, tokens, sum(map(max, counts)), most_hidden)

    def _by_axes(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """Whole places of every axis are hidden, by a ratio of each axis; what is left of all stays visible."""
        ratios = list(self.axis_ratios or ())
        grid = _grid_with(name, tokens, "axis_ratios", len(ratios) - 1)
        if len(ratios) != len(grid):
            raise MaemmError(
                f"axis_ratios has {len(ratios)} numbers for a grid of {len(grid)} axes "
                f"(modalities.{name}.masking.axis_ratios); give {len(grid)}"
            )
        valid = _valid(tokens, grid)
        hidden, visible = torch.zeros_like(valid), 1
        for axis, (side, ratio) in enumerate(zip(grid, ratios, strict=True)):
            counts = self._visible_counts(side, ratio)
            noise = rng.uniform(f"mask/{name}/{axis}", side, device=valid.device)
            places = _hidden(noise, valid.movedim(1 + axis, 1).flatten(2).any(-1), [counts])
            hidden = hidden | places.view(-1, *(side if other == axis else 1 for other in range(len(grid))))
            visible *= counts[-1] if tokens.valid is None else max(counts)
        predict = tokens.count - visible if tokens.valid is None else tokens.count
        return plan_from_hidden(hidden.flatten(1), tokens, visible, predict)

    def _visible_counts(self, most: int, ratio: float) -> list[int]:
        """How many of n = 0 .. ``most`` stay visible."""
        return [visible_count(n, ratio, self.count) for n in range(most + 1)]


def _grid_with(name: str, tokens: Tokens, option: str, axis: int) -> tuple[int, ...]:
    """The grid of the tokens. Raises :class:`MaemmError` where it lacks an axis that an option names."""
    if tokens.grid is None or axis >= len(tokens.grid):
        what = "no grid" if tokens.grid is None else f"a grid {' x '.join(map(str, tokens.grid))} without axis {axis}"
        raise MaemmError(
            f"{option} needs axes of a grid, tokens are on {what} (modalities.{name}.masking.{option}); leave it out"
        )
    return tokens.grid


def _valid(tokens: Tokens, grid: tuple[int, ...]) -> Tensor:
    """(B, *grid) bool."""
    if tokens.valid is None:
        return torch.ones(1, dtype=torch.bool, device=tokens.values.device).expand(tokens.batch, *grid)
    return tokens.valid.view(-1, *grid)


def _hidden(noise: Tensor, valid: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
    """Along the last axis of ``valid`` (B, groups, n) or (B, n) all but the valid ones of the lowest noise: bool.

    ``counts``: how many stay visible by how many are valid, of each group, or one for all.
    """
    rank = noise.masked_fill(~valid, math.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    have = valid.sum(-1, keepdim=True)
    tables = [small_tensor(list(of), noise.device)[have] for of in counts]  # each for all groups
    visible = tables[0] if len(tables) == 1 else torch.cat([of[:, k : k + 1] for k, of in enumerate(tables)], 1)
    return (rank >= visible) & valid
