"""Block-wise masking of BEiT and MaskFeat: rectangles of random area and shape, until enough is hidden."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Interval, Positive, PositiveInt, Repeats
from maemm.contract.rng import Rng
from maemm.contract.small import to_device
from maemm.model.masking.counts import Count, check_ratio, plan_from_hidden, visible_count
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio

TRIES = 10  # rectangles that fail in a row before no more are tried (published code)


class Blocks(RatioMasking):
    """Hide rectangles of tokens, each of a random area, aspect ratio and place (BEiT, algorithm 1; MaskFeat).

    A rectangle is taken where it hides something new and not more than is left to hide. After ten in a row that do not,
    published code hides fewer tokens; here the rest is taken beside the rectangles, so that counts are exact and shapes
    never depend on the draw. On a grid with further axes before the last two (time) the rectangles go through all of
    them.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        least: tokens of a rectangle at least, while so many are left to hide
        most: tokens of a rectangle at most; null: as many as are left to hide
        aspect: height over width of a rectangle, drawn so that its logarithm is uniform
        draws: rectangles that are tried; more than a grid can use cost time alone
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.4,
        least: PositiveInt = 16,
        most: PositiveInt | None = None,
        aspect: Interval[Positive] = (0.3, 1 / 0.3),
        draws: Repeats = 32,
        count: Count = "floor_hidden",
    ):
        self.ratio, self.count, self.draws = read_ratio(ratio), count, draws
        self.least, self.most, self.aspect = least, most, aspect

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        ratio = self.ratio_of(name, rng)
        check_ratio(ratio)
        if tokens.grid is None or len(tokens.grid) < 2:
            raise MaemmError(
                f"blocks need tokens on a grid of two axes or more, {name!r} has {tokens.grid} "
                f"(modalities.{name}.masking); choose random or block"
            )
        *others, height, width = tokens.grid
        depth, cells = math.prod(others), height * width
        shown = visible_count(cells, ratio, self.count)
        device = tokens.values.device
        # One rectangle after the other, on the host: it knows all numbers, and on a GPU that would be 1,000 launches.
        uniform = rng.uniform(f"mask/{name}/blocks", self.draws, 4)
        drawn = to_device(self._rectangles(uniform, height, width, cells - shown), device)
        # Rectangles first, then what has most of them around it, at random among equals; never what is not valid.
        around = F.avg_pool2d(drawn.float()[:, None], 3, 1, 1, count_include_pad=True)[:, 0].flatten(1) * 9
        order = drawn.flatten(1) * 20.0 + around.round()
        order = order + rng.uniform(f"mask/{name}/rest", cells, device=device)
        if tokens.valid is not None:
            valid = tokens.valid.unflatten(1, (depth, cells)).any(1)
            order = order.masked_fill(~valid, -1.0)
        first = order.argsort(dim=1, descending=True, stable=True)[:, : cells - shown]
        hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, first, True)
        return plan_from_hidden(hidden.repeat(1, depth), tokens, depth * shown, depth * (cells - shown))

    def _rectangles(self, uniform: Tensor, height: int, width: int, wanted: int) -> Tensor:
        """(B, height, width) bool, at most ``wanted`` of each; ``uniform`` (B, draws, 4): area, aspect, top, left.

        Both are on the CPU. All samples go through the same operations side by side, in float32.
        """
        low, high = (math.log(value) for value in self.aspect)
        aspect = torch.exp(low + uniform[..., 1] * (high - low))
        stretch = torch.stack([aspect, 1 / aspect], -1).numpy()  # (B, draws, 2)
        draws, limits = uniform.numpy(), np.array([height, width], np.float32)
        rows, columns = (np.arange(side, dtype=np.float32) for side in (height, width))
        free = np.ones((len(draws), height, width), bool)
        left_over, failures = np.full(len(draws), wanted), np.zeros(len(draws), np.int64)
        for number in range(self.draws):
            most = left_over if self.most is None else np.minimum(left_over, self.most)
            area = draws[:, number, 0] * (most - self.least).astype(np.float32) + np.float32(self.least)
            sides = np.rint(np.sqrt(area[:, None] * stretch[:, number]))
            start = np.floor(draws[:, number, 2:] * (limits + 1 - sides))
            end = start + sides
            across = (rows >= start[:, :1]) & (rows < end[:, :1])
            along = (columns >= start[:, 1:]) & (columns < end[:, 1:])
            new = across[:, :, None] & along[:, None] & free
            size = new.sum((1, 2))
            taken = (sides < limits).all(1) & (size > 0) & (size <= most) & (failures < TRIES)
            free ^= new & taken[:, None, None]
            left_over = left_over - size * taken
            failures = np.where(taken, 0, failures + 1)
            if not ((left_over > 0) & (failures < TRIES)).any():
                break  # nothing more would be taken
        return torch.from_numpy(~free)
