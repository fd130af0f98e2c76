"""Masks along a curve through the grid: what it visits first, a window of it, or every k-th cell stays visible."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegativeInt
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import Count, noise_order, plan_from_order, visible_count
from maemm.model.masking.curves import order_of
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio

Order = Literal["zigzag", "hilbert", "hilbert_general", "peano", "spiral"]
Mode = Literal["prefix", "window", "stride"]


class Scan(RatioMasking):
    """Show cells by their place on a curve through the grid; exact counts.

    The orders are those of image scanning (SPIE 13521 compares them as masks; it has no code, so the modes are a
    reading). zigzag: rows to the right and to the left in turn. hilbert: the curve of the next power of two, without
    the cells outside the grid. hilbert_general: a Hilbert-like curve of the rectangle itself. peano: the curve of the
    next power of three, without the cells outside. spiral: from the middle outwards. Grids have 1 to 3 axes. On a line
    all orders walk from the start but spiral, which takes the ends in turn. On three axes zigzag turns at every row
    and plane, hilbert and peano are curves in space, hilbert_general walks every plane, every second one backwards,
    and spiral takes box-shaped shells.

    Modes, for V visible tokens of N: prefix: the first V of the curve, for spiral the middle of the picture; the same
    for all samples. window: V consecutive ones, cyclically, from a random place of each sample. stride: evenly spaced
    ones, step floor(j N / V) + phase for j < V; the same for all samples. In ragged batches the curve leaves out the
    tokens that are not valid.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        order: zigzag, hilbert, hilbert_general, peano or spiral
        mode: prefix, window or stride; null: prefix for spiral, window for the others
        phase: stride: steps by which the cells are shifted along the curve
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.75,
        order: Order = "spiral",
        mode: Mode | None = None,
        phase: NonNegativeInt = 0,
        count: Count = "floor_visible",
    ):
        self.ratio, self.order, self.phase, self.count = read_ratio(ratio), order, phase, count
        self.mode = mode or ("prefix" if order == "spiral" else "window")
        if phase and self.mode != "stride":
            raise MaemmError(f"phase is for mode stride, not {self.mode} (masking.phase); leave out one of them")
        self._places: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        ratio = self.ratio_of(name, rng)
        order, place = self._curve(name, tokens)
        place = place.expand(tokens.batch, -1)
        total: int | Tensor = tokens.count
        if tokens.valid is not None:  # places among the valid tokens, in the order of the curve
            valid = tokens.valid[:, order]
            place = (valid.cumsum(1) - 1).clamp(min=0)[:, place[0]]
            total = tokens.valid.sum(1, keepdim=True)
        if self.mode == "window":
            start = (rng.uniform(f"mask/{name}/start", 1, device=place.device) * total).long()
            place = (place - start).remainder(total if isinstance(total, int) else total.clamp(min=1))
        elif self.mode == "stride":
            place = (~self._strides(place, total, tokens.count, ratio)).long()
        return plan_from_order(noise_order(place.float(), tokens), tokens, ratio, self.count)

    def _strides(self, place: Tensor, total: int | Tensor, most: int, ratio: float) -> Tensor:
        """(B, N) bool: whether a place is floor(j n / v) + phase for some j < v, of n tokens with v visible."""
        counts = [visible_count(n, ratio, self.count) for n in range(most + 1)]
        if isinstance(total, int):
            visible: int | Tensor = max(counts[total], 1)
            shifted = (place - self.phase).remainder(total)
        else:
            visible = small_tensor(counts, place.device)[total].clamp(min=1)
            total = total.clamp(min=1)
            shifted = (place - self.phase).remainder(total)
        j = (shifted * visible + total - 1).div(total, rounding_mode="floor")
        return ((j * total).div(visible, rounding_mode="floor") == shifted) & (j < visible)

    def _curve(self, name: str, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(N,) the token at each step of the curve, and (N,) the step of each token; kept on the device."""
        if tokens.grid is None or len(tokens.grid) > 3:
            where = "no grid" if tokens.grid is None else f"a grid of {len(tokens.grid)} axes"
            raise MaemmError(
                f"scan needs tokens on a grid of 1 to 3 axes, these are on {where} (modalities.{name}.masking); choose "
                "another masking, such as random"
            )
        key = (tokens.grid, tokens.values.device)
        if key not in self._places:
            order = torch.from_numpy(order_of(self.order, tokens.grid).copy())
            self._places[key] = tuple(  # type: ignore[assignment]  # of two
                x.to(tokens.values.device, non_blocking=True) for x in (order, order.argsort())
            )
        return self._places[key]
