"""Orders in which a curve visits the cells of a grid of 1 to 3 axes, by raster index. Made once for a grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from maemm.contract.errors import MaemmError

Grid = tuple[int, ...]
_MOST_CELLS = 1 << 26  # of the square or cube that a curve is cut from; seconds


@lru_cache(maxsize=64)
def order_of(name: str, grid: Grid) -> np.ndarray:
    """(N,) int64, a permutation: the raster index of the cell that the curve visits at each step.

    ``name``: zigzag, hilbert, hilbert_general, peano or spiral; the docstrings of those functions define them.
    """
    cells = CURVES[name](grid)
    return np.ravel_multi_index(tuple(cells.T), grid).astype(np.int64)


def zigzag(grid: Grid) -> np.ndarray:
    """Rows in order, each begun where the last one ended: to the right, to the left, ...; planes in the same way, so
    that every step goes to a neighbour on any number of axes. A line is walked from its start. (N, A)."""
    cells = np.zeros((1, 0), np.int64)
    for side in reversed(grid):  # the fastest axis first: what is walked so far is walked back in every second place
        runs = [np.column_stack([np.full(len(cells), k), cells[:: -1 if k % 2 else 1]]) for k in range(side)]
        cells = np.concatenate(runs)
    return cells


def spiral(grid: Grid) -> np.ndarray:
    """From the middle outwards, so that what is visited first lies around the middle; the last cell is the first of the
    grid. (N, A).

    On two axes the reverse of the clockwise spiral inwards (from the top left to the right, down, left, up). On a line
    the ends are taken in turn, in reverse. On three axes box-shaped shells, each walked as in :func:`zigzag`.
    """
    if len(grid) == 2:
        return np.array(list(_inwards(*grid)), np.int64)[::-1]
    cells = zigzag(grid)
    far = np.array(grid) - 1 - cells
    depth = np.minimum(cells, far).min(1)  # shells from the border
    if len(grid) == 1:
        return cells[np.lexsort((cells[:, 0] > far[:, 0], depth))][::-1]
    return cells[np.argsort(depth, kind="stable")][::-1]


def _inwards(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    top, left, bottom, right = 0, 0, rows - 1, columns - 1
    while top <= bottom and left <= right:
        yield from ((top, c) for c in range(left, right + 1))
        yield from ((r, right) for r in range(top + 1, bottom + 1))
        if top < bottom:
            yield from ((bottom, c) for c in range(right - 1, left - 1, -1))
        if left < right:
            yield from ((r, left) for r in range(bottom - 1, top, -1))
        top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1


def hilbert(grid: Grid) -> np.ndarray:
    """Hilbert's curve of the next power of two, without the cells outside the grid. (N, A).

    On two axes the usual map of a step to x (column) and y (row); on three Skilling's (Programming the Hilbert curve,
    2004). A line is walked from its start. Cells of the curve on 2^k sides are neighbours; what is cut makes gaps.
    """
    if len(grid) == 1:
        return zigzag(grid)
    bits = (max(grid) - 1).bit_length()
    _refuse_large("hilbert", 2**bits, grid)
    steps = np.arange(1 << (bits * len(grid)), dtype=np.int64)
    return _cropped(_hilbert_square(steps, bits) if len(grid) == 2 else _hilbert_cube(steps, bits), grid)


def _hilbert_square(steps: np.ndarray, bits: int) -> np.ndarray:
    x, y, rest = np.zeros_like(steps), np.zeros_like(steps), steps
    for bit in range(bits):
        side = 1 << bit
        right = (rest >> 1) & 1
        down = (rest ^ right) & 1
        turned = (right == 1) & (down == 0)
        x, y = np.where(turned, side - 1 - x, x), np.where(turned, side - 1 - y, y)
        x, y = np.where(down == 0, y, x), np.where(down == 0, x, y)
        x, y, rest = x + side * right, y + side * down, rest >> 2
    return np.column_stack([y, x])


def _hilbert_cube(steps: np.ndarray, bits: int) -> np.ndarray:
    axes = 3
    x = [np.zeros_like(steps) for _ in range(axes)]
    for place in range(axes * bits):  # the bits of a step, in turn those of each axis
        axis = axes - 1 - place % axes
        x[axis] |= ((steps >> place) & 1) << (place // axes)
    last = x[-1] >> 1  # decode Gray's code
    for axis in range(axes - 1, 0, -1):
        x[axis] ^= x[axis - 1]
    x[0] ^= last
    for bit in range(1, bits):  # undo excess work
        low = (1 << bit) - 1
        for axis in range(axes - 1, -1, -1):
            invert = (x[axis] >> bit) & 1 == 1
            swap = np.where(invert, 0, (x[0] ^ x[axis]) & low)
            x[axis] = x[axis] ^ swap
            x[0] = np.where(invert, x[0] ^ low, x[0] ^ swap if axis else x[0])
    return np.column_stack(x)


def hilbert_general(grid: Grid) -> np.ndarray:
    """A Hilbert-like curve of a rectangle: halves along its longer side, or thirds of a U, with even lengths where
    possible (Cerveny's generalised curve). A step is diagonal where the longer side is odd and the other even. (N, A).

    A line is walked from its start. On three axes every plane of the last two is walked in this way, every second one
    backwards, so that steps from plane to plane go to a neighbour.
    """
    if len(grid) == 1:
        return zigzag(grid)
    rows, columns = grid[-2:]
    across, down = np.array([0, 1]), np.array([1, 0])
    long, short = (across * columns, down * rows) if columns >= rows else (down * rows, across * columns)
    plane = np.array(list(_rectangle(np.zeros(2, np.int64), long, short)), np.int64)
    if len(grid) == 2:
        return plane
    return np.concatenate(
        [np.column_stack([np.full(len(plane), k), plane[:: -1 if k % 2 else 1]]) for k in range(grid[0])]
    )


def _rectangle(corner: np.ndarray, main: np.ndarray, side: np.ndarray) -> Iterator[np.ndarray]:
    """The cells of a rectangle from ``corner``, spanned by ``main``, along which it is crossed, and ``side``."""
    length, width = (int(np.abs(v).sum()) for v in (main, side))
    forward, sideways = np.sign(main), np.sign(side)
    if width == 1 or length == 1:
        step = forward if width == 1 else sideways
        yield from (corner + k * step for k in range(max(length, width)))
        return
    half, half_side = main // 2, side // 2
    if 2 * length > 3 * width:  # long: two halves, one behind the other
        if np.abs(half).sum() % 2 and length > 2:
            half = half + forward
        yield from _rectangle(corner, half, side)
        yield from _rectangle(corner + half, main - half, side)
        return
    if np.abs(half_side).sum() % 2 and width > 2:
        half_side = half_side + sideways
    yield from _rectangle(corner, half_side, half)
    yield from _rectangle(corner + half_side, main, side - half_side)
    end = corner + (main - forward) + (half_side - sideways)
    yield from _rectangle(end, -half_side, -(main - half))


def peano(grid: Grid) -> np.ndarray:
    """Peano's curve of the next power of three, without the cells outside the grid. (N, A).

    The digits of a step in base 3 belong to the axes in turn; a digit d of an axis counts as 2 - d where the sum of the
    digits before it that belong to other axes is odd. A line is walked from its start.
    """
    axes, digits = len(grid), 0
    while 3**digits < max(grid):
        digits += 1
    _refuse_large("peano", 3**digits, grid)
    steps = np.arange(3 ** (digits * axes), dtype=np.int64)
    cells, sums = np.zeros((len(steps), axes), np.int64), np.zeros((len(steps), axes), np.int64)
    for place, axis in itertools.product(range(digits), range(axes)):
        digit = steps // 3 ** (digits * axes - 1 - place * axes - axis) % 3
        others = sums.sum(1) - sums[:, axis]
        cells[:, axis] = cells[:, axis] * 3 + np.where(others % 2, 2 - digit, digit)
        sums[:, axis] += digit
    return _cropped(cells, grid)


def _refuse_large(name: str, side: int, grid: Grid) -> None:
    if side ** len(grid) > _MOST_CELLS:
        raise MaemmError(
            f"the order {name} of a grid {' x '.join(map(str, grid))} is cut from a curve on {side}^{len(grid)} cells, "
            "too many (masking.order); use hilbert_general, zigzag or spiral"
        )


def _cropped(cells: np.ndarray, grid: Grid) -> np.ndarray:
    return cells[(cells < np.array(grid)).all(1)]


CURVES: dict[str, Callable[[Grid], np.ndarray]] = {
    "zigzag": zigzag,
    "hilbert": hilbert,
    "hilbert_general": hilbert_general,
    "peano": peano,
    "spiral": spiral,
}
