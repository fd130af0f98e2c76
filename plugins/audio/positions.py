"""Stored position tables of spectrograms: used as they are, trimmed for shorter clips, extended for longer ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maemm.contract import Tokens
from maemm.contract.positions import Table, resize_table, sincos

_CLOSE = 1e-4  # a table within this distance of the sin-cos formula was made by it


class StoredTable(Table):
    """One row per token, in the order of the tokens, for tokens whose first axis is time.

    AudioMAE's tables were made for 8 x 64 tokens and are used on 64 x 8: each row is unique, but it is not the code
    of its true position. They are never recomputed, because trained weights depend on them. A shorter clip uses the
    first rows, so that every token keeps its row; a longer one continues with the formula that made the table, or
    with a resized table where it is no sin-cos table.
    """

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D)."""
        if tokens.count == self.values.shape[1]:
            return self.values[0][index]
        return super().forward(tokens, index)

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """(1, N, D) for a grid."""
        count, have = math.prod(grid), self.values.shape[1]
        if grid[1:] != self.grid[1:]:
            return resize_table(self.values, self.grid, tuple(grid))
        if count <= have:
            return self.values[:, :count]
        period = period_of(self.values[0])
        if period is None:
            return resize_table(self.values, self.grid, tuple(grid))
        row = torch.arange(have, count, device=self.values.device)
        return torch.cat([self.values, rows_of(row, period, self.values.shape[-1])[None].to(self.values.dtype)], 1)


def rows_of(row: Tensor, period: int, dim: int) -> Tensor:
    """Rows of a two-axis sin-cos table with ``period`` columns: [code of row mod period, code of row div period]."""
    return sincos(torch.stack([row.div(period, rounding_mode="floor"), row % period], -1), dim)


def period_of(table: Tensor) -> int | None:
    """The number of columns that the sin-cos table (N, D) was made for, or None if it is not one."""
    count, dim = table.shape
    if dim % 4 or count < 2:
        return None
    columns = table[:, : dim // 2]
    again = ((columns[1:] - columns[:1]).abs().amax(1) < _CLOSE).nonzero()
    period = int(again[0]) + 1 if len(again) else count
    expected = rows_of(torch.arange(count, device=table.device), period, dim)
    return period if torch.allclose(expected, table.float(), atol=_CLOSE) else None
