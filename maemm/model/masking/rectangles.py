"""Rectangles of a grid: their sizes, their places, the cells that they cover. Pure functions, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng

Range = tuple[float, float]
Blocks = Annotated[int, Ge(1), Le(100)]  # of a sample; published masks have up to ten


def frames_rows_columns(name: str, tokens: Tokens, masking: str) -> tuple[int, int, int]:
    """The grid as three axes, of which the first may have one cell: (time, rows, columns).

    Raises :class:`MaemmError` where the tokens are on no grid, or on one of more than three axes.
    """
    if tokens.grid is None or len(tokens.grid) > 3:
        where = "no grid" if tokens.grid is None else f"a grid of {len(tokens.grid)} axes"
        raise MaemmError(
            f"{masking} needs tokens on a grid of 1 to 3 axes, these are on {where} (modalities.{name}.masking); "
            "choose another masking, such as random"
        )
    frames, rows, columns = (1,) * (3 - len(tokens.grid)) + tokens.grid
    return frames, rows, columns


def area_size(
    rows: int, columns: int, scale: Range, aspect: Range, uniforms: tuple[float, float], spare: int
) -> tuple[int, int]:
    """(height, width) of a rectangle, both sides at most those of the grid less ``spare``.

    ``uniforms`` choose its area, int(rows * columns * s) with s in ``scale``, and its height / width in ``aspect``
    (I-JEPA's src/masks/multiblock.py and V-JEPA 2's multiseq_multiblock3d.py, _sample_block_size). Along an axis of one
    cell it has one, and the whole area along the other.
    """
    low, high = scale
    area = int(rows * columns * (low + uniforms[0] * (high - low)))
    flat, tall = aspect
    ratio = flat + uniforms[1] * (tall - flat)
    if rows == 1:
        height, width = min(area, 1), area
    elif columns == 1:
        height, width = area, min(area, 1)
    else:
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    most_rows, most_columns = (side - spare if side > 1 else 1 for side in (rows, columns))
    return min(height, most_rows), min(width, most_columns)


def corners(uniforms: Tensor, places: Sequence[int]) -> Tensor:
    """uniforms (..., A) in [0, 1) -> corners (..., A) int64, the a-th one of ``places[a]`` places."""
    return torch.stack([(uniforms[..., a] * n).long().clamp(max=n - 1) for a, n in enumerate(places)], -1)


def cells(grid: Sequence[int], size: Sequence[int], corner: Tensor) -> Tensor:
    """corner (..., A) of boxes of ``size`` on a ``grid`` of A axes -> (..., N) bool, the cells that each box covers."""
    return _product(_spans(grid, size, corner))


def union(grid: Sequence[int], size: Sequence[int], corner: Tensor) -> Tensor:
    """corner (..., n, A) of n boxes -> (..., N) bool, the cells that any of them covers."""
    *others, last = _spans(grid, size, corner)
    if not others:
        return last.any(-2)
    # The number of boxes over each cell as one product: a loop over boxes would launch a dozen kernels for each.
    count = _product(others).float().transpose(-2, -1) @ last.float()
    return (count > 0).flatten(-2)


def _spans(grid: Sequence[int], size: Sequence[int], corner: Tensor) -> list[Tensor]:
    """For each axis (..., side) bool: the places that a box covers along it."""
    spans = []
    for axis, (side, length) in enumerate(zip(grid, size, strict=True)):
        first = corner[..., axis, None]
        place = torch.arange(side, device=corner.device)
        spans.append((place >= first) & (place < first + length))
    return spans


def _product(spans: Sequence[Tensor]) -> Tensor:
    """Of each axis (..., side) bool -> (..., N) bool, in raster order."""
    covered = spans[0]
    for inside in spans[1:]:
        covered = (covered[..., :, None] & inside[..., None, :]).flatten(-2)
    return covered


def indices(chosen: Tensor, count: int) -> Tensor:
    """chosen (..., N) bool -> (..., count) int64: of each row the lowest ``count`` indices, ascending.

    Every row must have as many.
    """
    index = torch.arange(chosen.shape[-1], device=chosen.device)
    return torch.where(chosen, index, chosen.shape[-1]).sort(-1).values[..., :count]


def first_of(kind: Tensor, noise: Tensor, count: int) -> Tensor:
    """(..., N) bool: the ``count`` cells of the lowest ``kind`` (..., N) int; among equals those of the lowest noise.

    ``noise`` (..., N) in [0, 1); cells of equal noise (the same place at several times) go together, in order.
    """
    order = (kind + 0.5 * noise).argsort(dim=-1, stable=True)  # halved: a sum is never rounded up to the next kind
    return torch.zeros_like(kind, dtype=torch.bool).scatter_(-1, order[..., :count], True)


def first_try(excess: Tensor) -> Tensor:
    """excess (..., T) int64, by how much each try misses what is asked -> (...) the first that misses least."""
    tries = excess.shape[-1]
    return (excess * tries + torch.arange(tries, device=excess.device)).argmin(-1)


def pick(values: Tensor, chosen: Tensor) -> Tensor:
    """values (*S, T, ...) and chosen (*S) -> (*S, ...): of each row the chosen try."""
    axis = chosen.ndim
    index = chosen.reshape(*chosen.shape, *(1,) * (values.ndim - axis)).expand(
        *chosen.shape, 1, *values.shape[axis + 1 :]
    )
    return values.gather(axis, index).squeeze(axis)


def batch_rng(rng: Rng) -> Rng:
    """One row, the same for all ranks and micro-batches of a step: for what decides the shapes of plans.

    Several plans of a sample (``multi_mask``) share it, since they are rows of one plan.
    """
    key = rng.key[: rng.key.index("several")] if "several" in rng.key else rng.key
    return Rng(key, progress=rng.progress)
