"""Position embeddings: sine-cosine codes of the coordinates, and stored tables that are resized when used."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maemm.contract.data import Tokens
from maemm.contract.errors import MaemmError


def sincos(coords: Tensor, dim: int) -> Tensor:
    """Sine-cosine code of coordinates (..., A) -> (..., dim), computed in float64, returned as float32.

    The width is split evenly over the axes, the LAST axis first, each part ``[sin(x w), cos(x w)]`` with
    w_k = 10000^(-k/K), k = 0..K-1; columns left over are zero. For two axes this is the table of MAE
    (He et al. 2022, published code): the column in the first half, the row in the second. Raises
    :class:`MaemmError` where ``dim`` is less than two columns per axis.
    """
    axes = coords.shape[-1]
    count = dim // (2 * axes)
    if count == 0:
        raise MaemmError(f"width {dim} is too small for sin-cos positions of {axes} axes; use at least {2 * axes}")
    omega = 10000.0 ** (-torch.arange(count, dtype=torch.float64, device=coords.device) / count)
    angles = coords.double().flip(-1)[..., None] * omega  # (..., A, K)
    code = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return F.pad(code, (0, dim - code.shape[-1])).float()


TableResize = Literal["cubic", "linear"]


def resize_table(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], resize: TableResize = "cubic") -> Tensor:
    """Interpolate a table from one grid to another: (1, prod(old), D) -> (1, prod(new), D).

    On two axes bicubic without antialiasing, as in MAE's published code, or linear; on one or three linear. Raises
    :class:`MaemmError` for grids of more axes, or of different numbers of axes.
    """
    if old == new:
        return table
    if len(old) != len(new):
        raise MaemmError(f"a position table of grid {old} cannot be resized to grid {new}")
    if len(old) > 3:
        raise MaemmError(f"position tables of {len(old)} axes cannot be resized; train with the grid {old}")
    mode = {1: "linear", 2: "bicubic" if resize == "cubic" else "bilinear", 3: "trilinear"}[len(old)]
    image = table.float().reshape(1, *old, -1).movedim(-1, 1)
    image = F.interpolate(image, size=new, mode=mode, align_corners=False)
    return image.flatten(2).transpose(1, 2)


class SinCos(nn.Module):
    """:func:`sincos` of the tokens' coordinates: works for any grid and has no state."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self._cache: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Tokens ``index`` (R, V) -> their positions (R, V, D)."""
        if tokens.grid is None or tokens.coords.shape[0] != 1:
            return self.code(tokens.gather_coords(index))
        key = (tokens.grid, tokens.coords.device)
        if key not in self._cache:  # on a grid the coordinates are the lattice: cache one table per grid and device
            if len(self._cache) > 16:
                self._cache.clear()
            self._cache[key] = self.code(tokens.coords[0])
        return self._cache[key][index]

    def code(self, coords: Tensor) -> Tensor:
        """The code of coordinates (..., A) -> (..., D); override it for another one."""
        return sincos(coords, self.dim)

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """The table of a whole grid, (1, N, D), as published files store it."""
        return self.code(lattice(grid))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


class Table(nn.Module):
    """A stored table for one grid, learned or fixed. For another grid it is resized on the fly.

    The stored table keeps its size. Fixed ones are for weights that bring theirs; with ``sincos_first`` it begins as
    the sine-cosine code of the grid, the FIRST axis first (MultiMAE; on grids that are not square its published code
    confuses height and width, this does not).
    """

    values: Tensor  # (1, N, D): a parameter if learned, else a buffer
    resize: TableResize = "cubic"

    def __init__(self, dim: int, grid: tuple[int, ...], learned: bool, *, sincos_first: bool = False):
        super().__init__()
        self.grid = tuple(grid)
        if sincos_first:
            values = sincos(lattice(self.grid).flip(-1), dim)[None]
        else:
            values = torch.empty(1, math.prod(grid), dim)
            nn.init.trunc_normal_(values, std=0.02)
        if learned:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Tokens ``index`` (R, V) -> their positions (R, V, D). Raises :class:`MaemmError` for tokens on no grid."""
        if tokens.grid is None:
            raise MaemmError("a position table needs tokens on a grid; use sin-cos positions or your own")
        return self.table(tokens.grid)[0][index]

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """The table of a grid, (1, N, D), resized where it is not the stored one."""
        return resize_table(self.values, self.grid, tuple(grid), self.resize)


class NoPosition(nn.Module):
    """No positions (zeros): the order of tokens has no meaning, or their embedding holds the position."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Tokens ``index`` (R, V) -> zeros (R, V, D)."""
        return tokens.values.new_zeros(*index.shape, self.dim)


def lattice(grid: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
    """(N, A) coordinates of every cell of a grid in raster order, float32."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def make_position(kind: str, dim: int, grid: tuple[int, ...]) -> nn.Module:
    """A module (tokens, index (R, V)) -> (R, V, dim) of a kind: "sincos", "learned", "fixed" (a stored table that is
    not trained), "sincos_table" (a fixed one that begins as a sine-cosine code, see :class:`Table`) or "none"."""
    if kind == "sincos":
        return SinCos(dim)
    if kind == "none":
        return NoPosition(dim)
    return Table(dim, grid, learned=kind == "learned", sincos_first=kind == "sincos_table")
