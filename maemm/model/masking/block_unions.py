"""The union of several boxes is predicted from the rest (V-JEPA 2)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.options import Interval, Positive, PositiveFraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.model.masking.rectangles import Blocks, area_size, corners, first_of, first_try, indices, pick, union

TRIES = 20  # draws of which the first with enough visible and predicted tokens is used
_SAMPLES = 512
_STEPS = 64

Box = tuple[int, int, int]  # frames, rows, columns


class Generator(BaseModel):
    """One set of plans: boxes whose union is predicted from the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    blocks: Blocks = Field(default=8, description="boxes of a sample")
    scale: Interval[PositiveFraction] = Field(default=(0.15, 0.15), description="area, a fraction of rows * columns")
    aspect: Interval[Positive] = Field(default=(0.75, 1.5), description="height / width")
    temporal_scale: Interval[PositiveFraction] = Field(default=(1.0, 1.0), description="length, a fraction of the clip")
    max_temporal_keep: PositiveFraction = Field(default=1.0, description="the context ends after this part of the clip")
    max_keep: PositiveInt | None = Field(default=None, description="most tokens of the context")
    full_complement: bool = Field(default=False, description="predict all that is not in the context")
    pred_full_complement: bool = Field(default=False, description="show all that is not predicted")
    inv_block: bool = Field(default=False, description="exchange context and what is predicted")
    keep: PositiveFraction | None = Field(default=None, description="exact counts: fraction in the context")

    def box(self, grid: Box, uniforms: tuple[float, float, float]) -> Box:
        """Frames, rows and columns of a batch's boxes; ``uniforms`` choose length, area and shape."""
        low, high = self.temporal_scale
        frames = max(1, int(grid[0] * (low + uniforms[0] * (high - low))))
        height, width = area_size(grid[1], grid[2], self.scale, self.aspect, (uniforms[1], uniforms[2]), 0)
        return frames, height, width

    def context_frames(self, grid: Box) -> int:
        return max(1, int(grid[0] * self.max_temporal_keep))

    def lists(self, visible: Tensor, predict: Tensor, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """visible and predict (B, N) bool, cut to ``counts``, lowest first -> indices of both (B, V), (B, M).

        The published order: cut, then complement, then exchange.
        """
        total = visible.shape[1]
        context, target = indices(visible, counts[0]), indices(predict, counts[1])
        if self.full_complement:
            target = indices(_others(context, total), total - counts[0])
        elif self.pred_full_complement:
            context = indices(_others(target, total), total - counts[1])
        return (target, context) if self.inv_block else (context, target)


def _others(index: Tensor, total: int) -> Tensor:
    """index (B, K) -> (B, N) bool, True for all others."""
    return torch.ones(len(index), total, dtype=torch.bool, device=index.device).scatter_(1, index, False)


@lru_cache(maxsize=64)
def boxes(generator: Generator, grid: Box, lengths: int = _STEPS + 1) -> set[Box]:
    """The boxes that may be drawn: those of 65 evenly spaced numbers for each of length, area and shape; the longest
    ``lengths`` of the lengths."""
    numbers = [step / _STEPS for step in range(_STEPS + 1)]
    frames = {generator.box(grid, (u, 0.0, 0.0))[0] for u in numbers[-lengths:]}
    areas = {generator.box(grid, (0.0, area, shape))[1:] for area in numbers for shape in numbers}
    return {(length, *area) for length in frames for area in areas}


@lru_cache(maxsize=64)
def refuse_impossible(generator: Generator, grid: Box, where: str) -> None:
    """Raise :class:`MaemmError` where boxes may be empty, or may cover everything."""
    if generator.full_complement and generator.pred_full_complement:
        raise MaemmError(f"full_complement and pred_full_complement exclude each other ({where}); set one of them")
    longest = boxes(generator, grid, lengths=1)
    if min(math.prod(box) for box in longest) < 1:
        raise MaemmError(
            f"a box may have no token: scale {generator.scale[0]:g} of {grid[1]} x {grid[2]} ({where}); raise scale"
        )
    if grid in longest:
        raise MaemmError(
            f"a box may cover all of the grid {grid[0]} x {grid[1]} x {grid[2]}, so that nothing is visible ({where}); "
            "lower scale or temporal_scale"
        )


def hidden_by(generator: Generator, grid: Box, box: Box, corner: Tensor) -> Tensor:
    """corner (..., n, 3) of boxes -> (..., N) bool: their union, and all after ``max_temporal_keep``."""
    hidden = union(grid, box, corner)
    frames = generator.context_frames(grid)
    if frames < grid[0]:
        hidden[..., frames * grid[1] * grid[2] :] = True
    return hidden


def _draw(
    generator: Generator, grid: Box, box: Box, tries: int, name: str, rng: Rng, device: torch.device | str
) -> Tensor:
    """(B, tries + 1, N) bool, what each try hides.

    The last try has one box, at the end of the clip, so that something is visible.
    """
    places = [side - length + 1 for side, length in zip(grid, box, strict=True)]
    uniforms = rng.uniform(f"mask/{name}/places", tries + 1, generator.blocks, 3, device=device)
    corner = corners(uniforms, places)
    corner[:, -1] = corner[:, -1, :1]
    corner[:, -1, :, 0] = places[0] - 1
    return hidden_by(generator, grid, box, corner)


def official(generator: Generator, grid: Box, box: Box, name: str, rng: Rng) -> Tensor:
    """(B, N) bool, what is hidden, on the CPU: its counts decide shapes. Redrawn while nothing is visible."""
    hidden = _draw(generator, grid, box, TRIES, name, rng, "cpu")
    return pick(hidden, first_try(hidden.all(-1).long()))


def official_counts(generator: Generator, hidden: Tensor) -> tuple[int, int]:
    """hidden (B, N) on the CPU -> (visible, predicted) tokens of every sample: the fewest that one has."""
    counts = (~hidden).sum(-1)
    visible, predict = int(counts.min()), hidden.shape[1] - int(counts.max())
    return (visible if generator.max_keep is None else min(visible, generator.max_keep)), predict


@lru_cache(maxsize=1024)
def exact_counts(generator: Generator, grid: Box, box: Box) -> tuple[int, int]:
    """(visible, predicted) tokens of every sample: as many as nine in ten draws have at least of each.

    Draws that leave nothing visible do not count: they are drawn again.
    """
    rng = Rng(("usual",), range(_SAMPLES), _SAMPLES)
    total = math.prod(grid)
    hidden = _draw(generator, grid, box, 1, "usual", rng, "cpu")[:, 0]
    counts = (~hidden).sum(-1).sort().values
    counts = counts[counts > 0] if counts.any() else counts
    visible, predict = int(counts[len(counts) // 10]), total - int(counts[-len(counts) // 10])
    if generator.keep is not None:
        visible = round(generator.keep * total)
    visible = max(visible, 1)
    if generator.max_keep is not None:
        visible = min(visible, generator.max_keep)
    predict = max(min(predict, total - visible), 1)
    if generator.full_complement:
        predict = total - visible
    elif generator.pred_full_complement:
        visible = total - predict
    return visible, predict


def exact(
    generator: Generator, grid: Box, box: Box, counts: tuple[int, int], name: str, rng: Rng, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N) bool twice, the context and what is predicted, with ``counts`` each, and (B,) the context before.

    The first of 20 draws that has as many of both, or the nearest one; what is too much is left out at random, by
    places: all frames of a place before those of another.
    """
    visible, predict = counts
    hidden = _draw(generator, grid, box, TRIES, name, rng, device)
    total, left = hidden.shape[-1], (~hidden).sum(-1)
    wanted_visible = 0 if generator.pred_full_complement else visible
    wanted_predict = 0 if generator.full_complement else predict
    excess = (wanted_visible - left).clamp(min=0) + (left - (total - wanted_predict)).clamp(min=0)
    chosen = first_try(excess)
    hidden, left = pick(hidden, chosen), pick(left, chosen)
    places = grid[1] * grid[2]
    noise = rng.uniform(f"mask/{name}/repair", places, device=device).repeat(1, grid[0])
    late = torch.arange(total, device=device) >= generator.context_frames(grid) * places
    if generator.pred_full_complement:
        target = first_of((~hidden).long(), noise, predict)
        return ~target, target, left
    context = first_of(hidden.long() + late, noise, visible)
    target = ~context
    if not generator.full_complement:
        target = first_of(torch.where(context, 2, (~hidden).long()), noise, predict)
    return context, target, left
