"""Position embeddings of clips: sinusoids over the flat token index or the axes, tables of time and space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import SinCos, Table, resize_table, sincos


def flat_sincos(count: int, dim: int) -> Tensor:
    """(count, dim) float32: angle n / 10000^(2 floor(j/2) / dim), sine in even columns, cosine in odd ones (VideoMAE).

    On the CPU, in float64: in float32 the angles of long clips have errors of 1e-4.
    """
    column = torch.arange(dim, device="cpu")
    angle = torch.arange(count, dtype=torch.float64, device="cpu")[:, None] / 10000 ** (
        2 * (column // 2).double() / dim
    )
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class FlatSinCos(nn.Module):
    """The sinusoid of :func:`flat_sincos` over the flat token index; no state.

    A shorter clip has the first positions of a longer one, but another height or width changes those of all tokens.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self._cache: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D)."""
        key = (tokens.count, index.device)
        if key not in self._cache:
            self._cache[key] = flat_sincos(tokens.count, self.dim).to(index.device, non_blocking=True)
        return self._cache[key][index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


class TimeFirstSinCos(SinCos):
    """Sinusoids of time, then row, then column: 2 ceil(dim / 6) channels each, cut at ``dim``; no state.

    V-JEPA 2's ``uniform_power`` (src/models/utils/pos_embs.py); each axis has [sin(x w), cos(x w)] with w_k =
    10000^(-k / K), k = 0 .. K - 1.
    """

    def code(self, coords: Tensor) -> Tensor:
        axes = coords.shape[-1]
        width = 2 * -(-self.dim // (2 * axes))
        return sincos(coords.flip(-1), axes * width)[..., : self.dim]


class ClipTable(Table):
    """One stored table for all tokens of a clip. A still picture has one slot and uses the first slot's rows."""

    def table(self, grid: tuple[int, ...]) -> Tensor:
        if grid[0] != 1 or self.grid[0] == 1:
            return super().table(grid)
        area = self.grid[1] * self.grid[2]
        return resize_table(self.values[:, :area], self.grid[1:], tuple(grid[1:]))


class Separable(nn.Module):
    """A learned table of time slots plus one of positions in the frame (MAE-ST).

    They are resized for other sizes: linear in time, bicubic in space; a still picture uses the first slot.
    """

    def __init__(self, dim: int, grid: tuple[int, ...]):
        super().__init__()
        self.grid = tuple(grid)
        self.temporal = nn.Parameter(torch.empty(1, grid[0], dim))
        self.spatial = nn.Parameter(torch.empty(1, grid[1] * grid[2], dim))
        nn.init.trunc_normal_(self.temporal, std=0.02)
        nn.init.trunc_normal_(self.spatial, std=0.02)

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D). Raises :class:`MaemmError` unless the tokens are on a grid."""
        if tokens.grid is None:
            raise MaemmError("separable positions need tokens on a grid; use position: sincos")
        slots, *space = tokens.grid
        temporal = self.temporal[:, :1] if slots == 1 else resize_table(self.temporal, self.grid[:1], (slots,))
        spatial = resize_table(self.spatial, self.grid[1:], tuple(space))
        area = spatial.shape[1]
        return spatial[0][index % area] + temporal[0][index // area]
