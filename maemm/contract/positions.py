"""Position embeddings: formulas of the coordinates, and stored tables that are resized when they are used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maemm.contract.data import Tokens
from maemm.contract.errors import MaemmError


def sincos(coords: Tensor, dim: int) -> Tensor:
    """Sine and cosine code of coordinates (..., A) -> (..., dim), computed in float64, returned as float32.

    The width is split evenly over the axes, the LAST axis first, each part ``[sin(x w), cos(x w)]`` with
    w_k = 10000^(-k/K), k = 0..K-1; columns left over are zero. For two axes this is the table of MAE
    (He et al. 2022, published code): first half column, second half row.
    """
    axes = coords.shape[-1]
    count = dim // (2 * axes)
    if count == 0:
        raise MaemmError(f"width {dim} is too small for sin-cos positions of {axes} axes; use at least {2 * axes}")
    omega = 10000.0 ** (-torch.arange(count, dtype=torch.float64, device=coords.device) / count)
    angles = coords.double().flip(-1)[..., None] * omega  # (..., A, K)
    code = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return F.pad(code, (0, dim - code.shape[-1])).float()


def resize_table(table: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """(1, prod(old), D) -> (1, prod(new), D): bicubic without antialias on two axes, as published; linear otherwise."""
    if old == new:
        return table
    if len(old) != len(new):
        raise MaemmError(f"a position table of grid {old} cannot be resized to grid {new}")
    if len(old) > 3:
        raise MaemmError(f"position tables of {len(old)} axes cannot be resized; train with the grid {old}")
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(old)]
    lattice = table.float().reshape(1, *old, -1).movedim(-1, 1)
    lattice = F.interpolate(lattice, size=new, mode=mode, align_corners=False)
    return lattice.flatten(2).transpose(1, 2)


class SinCos(nn.Module):
    """The formula of :func:`sincos` at the true coordinates: any size, no state."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self._cache: dict[tuple, Tensor] = {}

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D)."""
        if tokens.grid is None or tokens.coords.shape[0] != 1:
            return sincos(tokens.gather_coords(index), self.dim)
        key = (tokens.grid, tokens.coords.device)
        if key not in self._cache:  # on a grid the coordinates are the lattice: one table per grid and device
            if len(self._cache) > 16:
                self._cache.clear()
            self._cache[key] = sincos(tokens.coords[0], self.dim)
        return self._cache[key][index]

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """(1, N, D) for a grid: what published files store."""
        return sincos(lattice(grid), self.dim)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}


class Table(nn.Module):
    """A stored table for one grid, learned or fixed; another grid gets it resized, the stored one stays."""

    def __init__(self, dim: int, grid: tuple[int, ...], learned: bool):
        super().__init__()
        self.grid = tuple(grid)
        values = torch.empty(1, math.prod(grid), dim)
        nn.init.trunc_normal_(values, std=0.02)
        if learned:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D). Needs tokens on a grid."""
        if tokens.grid is None:
            raise MaemmError("a position table needs tokens on a grid; use sin-cos positions or your own")
        return self.table(tokens.grid)[0][index]

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """(1, N, D) for a grid."""
        return resize_table(self.values, self.grid, tuple(grid))


class NoPosition(nn.Module):
    """Tokens carry no position: their order means nothing, or their embedding holds it."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> zeros (R, V, D)."""
        return tokens.values.new_zeros(*index.shape, self.dim)


def lattice(grid: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
    """(N, A) index of every cell in raster order, float32."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def make_position(kind: str, dim: int, grid: tuple[int, ...]) -> nn.Module:
    """``kind`` is "sincos", "learned", "fixed" (a stored table that is not trained) or "none"."""
    if kind == "sincos":
        return SinCos(dim)
    if kind == "none":
        return NoPosition(dim)
    return Table(dim, grid, learned=kind == "learned")
