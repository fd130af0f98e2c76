"""Small blocks around random centres, repaired at random to exact counts (data2vec 2.0)."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count, noise_order, plan_from_order
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio


class ScatteredBlocks(RatioMasking):
    """Show small blocks around random tokens, hide the rest; exact counts (data2vec 2.0, section 3.3).

    The published inverse block masks (fairseq/data/data_utils.py, compute_block_mask_2d): int(N (p + adjust) / side^A)
    centres anywhere on a grid of A axes, p the fraction inside the blocks; blocks end at the border; then random cells
    are taken out of the blocks, or added, until the count is exact. ``inverse: false`` hides the blocks instead. Grids
    have 1 to 3 axes. In ragged batches the blocks are those of the whole grid, and counts those of the valid tokens.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        side: tokens of a block along each axis
        adjust: what is added to the fraction inside the blocks, since they overlap
        inverse: show the blocks; false: hide them
        count: how the ratio is rounded to a number of tokens; null: as published, the tokens in the blocks are floored
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.8,
        side: PositiveInt = 3,
        adjust: Fraction = 0.07,
        inverse: bool = True,
        count: Count | None = None,
    ):
        self.ratio, self.side, self.adjust, self.inverse = read_ratio(ratio), side, adjust, inverse
        self.count: Count = count or ("floor_visible" if inverse else "floor_hidden")

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        grid = tokens.grid
        if grid is None or len(grid) > 3 or self.side > max(grid):
            where = "no grid" if grid is None else f"a grid {' x '.join(map(str, grid))}"
            raise MaemmError(
                f"scattered_blocks needs a grid of 1 to 3 axes and room for blocks of side {self.side}, the tokens are "
                f"on {where} (modalities.{name}.masking); lower side, or use random"
            )
        ratio = self.ratio_of(name, rng)
        device = tokens.values.device
        count = self.centres(grid, ratio)
        uniform = rng.uniform(f"mask/{name}/centre", count, device=device)
        centres = (uniform * tokens.count).long().clamp(max=tokens.count - 1)
        outside = (~self.cells(grid, centres)).float()
        first = outside if self.inverse else 1 - outside  # what is visible before the repair
        noise = rng.uniform(f"mask/{name}/repair", tokens.count, device=device)
        # Halved, so that a sum is never rounded up to the next kind.
        return plan_from_order(noise_order(first + 0.5 * noise, tokens), tokens, ratio, self.count)

    def centres(self, grid: tuple[int, ...], ratio: float) -> int:
        """How many blocks a sample has, centres that are drawn twice included."""
        total = torch.Size(grid).numel()
        inside = 1 - ratio if self.inverse else ratio
        return int(total * ((inside + self.adjust) / self.side ** len(grid)))

    def cells(self, grid: tuple[int, ...], centres: Tensor) -> Tensor:
        """Centres (B, C), raster indices -> (B, N) bool, the cells inside a block, before the repair."""
        total = torch.Size(grid).numel()
        inside = torch.zeros(len(centres), total, dtype=torch.bool, device=centres.device).scatter_(1, centres, True)
        inside = inside.view(-1, *grid)
        for axis, length in enumerate(grid, 1):  # a block spreads along one axis after the other
            before = torch.nn.functional.pad(inside.movedim(axis, -1).cumsum(-1), (1, 0))  # centres before each place
            place = torch.arange(length, device=centres.device)
            first, end = place - (self.side - 1 - self.side // 2), place + self.side // 2 + 1
            near = before[..., end.clamp(max=length)] - before[..., first.clamp(min=0)]
            inside = (near > 0).movedim(-1, axis)
        return inside.flatten(1)
