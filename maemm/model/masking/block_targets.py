"""Several rectangles to predict from another one, less what they cover (I-JEPA)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.masking.rectangles import Range, area_size, cells, corners, first_of, first_try, pick, union

PATIENCE = 20  # tries of a context before one more target is no longer subtracted, as published
TRIES = (
    20  # draws of targets and contexts of which the first with a large enough context is used, where counts are exact
)
_SAMPLES = 512  # draws from which the usual size of a context is told
_STEPS = 256  # of a uniform number, to know all sizes that it can give

Area = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class BlockTargets:
    """What is drawn on a grid of (frames, rows, columns); blocks are areas of rows and columns in all frames."""

    grid: tuple[int, int, int]
    targets: int
    target_scale: Range
    aspect: Range
    contexts: int
    context_scale: Range
    min_keep: int
    allow_overlap: bool

    @property
    def area(self) -> Area:
        return self.grid[1:]

    @property
    def least(self) -> int:
        """Places of rows and columns that are more than ``min_keep`` tokens."""
        return self.min_keep // self.grid[0] + 1

    def sizes(self, uniforms: tuple[float, float]) -> tuple[Area, Area]:
        """Sizes of the targets and of the contexts of a batch. One number chooses area and shape, as published."""
        target, context = uniforms
        return (
            area_size(*self.area, self.target_scale, self.aspect, (target, target), 1),
            area_size(*self.area, self.context_scale, (1.0, 1.0), (context, context), 1),
        )

    def places(self, size: Area) -> Area:
        """Corners that a block can have. The last of each axis is left out, as published."""
        rows, columns = (max(side - length, 1) for side, length in zip(self.area, size, strict=True))
        return rows, columns


@lru_cache(maxsize=64)
def all_sizes(drawn: BlockTargets) -> tuple[set[Area], set[Area]]:
    """The sizes that targets, and that contexts may have: those of 257 evenly spaced numbers."""
    both = [drawn.sizes((step / _STEPS, step / _STEPS)) for step in range(_STEPS + 1)]
    return {target for target, _ in both}, {context for _, context in both}


@lru_cache(maxsize=64)
def refuse_impossible(drawn: BlockTargets, where: str) -> None:
    """Raise :class:`MaemmError` where a block may have too few tokens: published code would draw it for ever."""
    frames, rows, columns = drawn.grid
    for role, sizes in zip(("target", "context"), all_sizes(drawn), strict=True):
        least = min(frames * size[0] * size[1] for size in sizes)
        if least <= drawn.min_keep:
            raise MaemmError(
                f"a {role} block may have {least} of {frames * rows * columns} tokens, not more than min_keep "
                f"{drawn.min_keep} ({where}); lower min_keep, or raise {role}_scale"
            )


def first_accepted(targets: Tensor, contexts: Tensor, least: int, allow_overlap: bool) -> tuple[Tensor, Tensor]:
    """The published choice among tries of a context.

    ``targets`` (B, n, P) bool, ``contexts`` (B, C, T, P) bool, tries in their order -> (B, C, P) bool, the cells of the
    first try with at least ``least`` cells outside the targets, and (B, C) its number. After every 20 failures one
    more target, from the last, is no longer subtracted; so n * 20 + 1 tries are always enough.
    """
    left = contexts
    if not allow_overlap:
        count, tries = targets.shape[1], contexts.shape[2]
        before = torch.zeros_like(targets[:, :1])
        covered = torch.cat([before, targets.cumsum(1) > 0], 1)  # by the first k targets
        level = count - (torch.arange(tries, device=targets.device) // PATIENCE).clamp(max=count)
        left = contexts & ~covered[:, level][:, None]
    chosen = first_try((left.sum(-1) < least).long())
    return pick(left, chosen), chosen


def official(drawn: BlockTargets, sizes: tuple[Area, Area], name: str, rng: Rng) -> tuple[Tensor, Tensor]:
    """(B, C, P) contexts and (B, n, P) targets before they are truncated, on the CPU: their counts decide shapes."""
    n, tries = drawn.targets, drawn.targets * PATIENCE + 1
    target = corners(rng.uniform(f"mask/{name}/targets", n, 2), drawn.places(sizes[0]))
    context = corners(rng.uniform(f"mask/{name}/contexts", drawn.contexts, tries, 2), drawn.places(sizes[1]))
    return of_corners(drawn, sizes, target, context)


def of_corners(drawn: BlockTargets, sizes: tuple[Area, Area], target: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """The published masks of draws: corners of targets (B, n, 2) and of tries of contexts (B, C, T, 2) -> contexts
    (B, C, P) and targets (B, n, P) bool, before they are truncated."""
    targets, contexts = cells(drawn.area, sizes[0], target), cells(drawn.area, sizes[1], context)
    return first_accepted(targets, contexts, drawn.least, drawn.allow_overlap)[0], targets


def exact(
    drawn: BlockTargets, sizes: tuple[Area, Area], keep: int, name: str, rng: Rng, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, P) contexts of ``keep`` cells each, (B, n, P) targets, and (B, C) the contexts' counts before."""
    targets, covered, blocks = _draw(drawn, sizes, TRIES, name, rng, device)
    left = blocks if drawn.allow_overlap else blocks & ~covered[:, :, None]
    counts = left.sum(-1)
    chosen = first_try((keep - counts).clamp(min=0).sum(-1))
    covered, blocks, counts = pick(covered, chosen)[:, None], pick(blocks, chosen), pick(counts, chosen)
    outside = (~blocks).long()  # taken only where the block has too few
    kind = outside if drawn.allow_overlap else torch.where(covered, 2, outside)
    noise = rng.uniform(f"mask/{name}/repair", *kind.shape[1:], device=device)
    return first_of(kind, noise, keep), cells(drawn.area, sizes[0], pick(targets, chosen)), counts


def _draw(
    drawn: BlockTargets, sizes: tuple[Area, Area], tries: int, name: str, rng: Rng, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of targets (B, T, n, 2), the cells of all (B, T, P), and the contexts' cells (B, T, C, P)."""
    n = drawn.targets
    uniforms = rng.uniform(f"mask/{name}/places", tries, n + drawn.contexts, 2, device=device)
    targets = corners(uniforms[:, :, :n], drawn.places(sizes[0]))
    contexts = corners(uniforms[:, :, n:], drawn.places(sizes[1]))
    return targets, union(drawn.area, sizes[0], targets), cells(drawn.area, sizes[1], contexts)


@lru_cache(maxsize=1024)
def usual_context(drawn: BlockTargets, sizes: tuple[Area, Area]) -> int:
    """As many cells as nine in ten contexts have at least, of draws that are the same everywhere."""
    rng = Rng(("usual",), range(_SAMPLES), _SAMPLES)
    _, covered, blocks = _draw(drawn, sizes, 1, "usual", rng, torch.device("cpu"))
    left = blocks if drawn.allow_overlap else blocks & ~covered[:, :, None]
    counts = left.sum(-1).flatten().sort().values
    return int(counts[len(counts) // 10])
