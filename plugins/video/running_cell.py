"""Running cells: the tokens that the decoder of VideoMAE v2 skips (arXiv 2303.16727, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError

_CELL = 4  # tokens of a cell, 2 x 2


def running_cell(grid: tuple[int, ...], ratio: float, start: Tensor, where: str = "masking") -> Tensor:
    """(R, slots * height * width) bool, True: not decoded. ``start`` (R,) int64 in 0..3 shifts each row's pattern.

    Cells of 2 x 2 tile the frame; a fraction ``ratio`` of each is skipped, and the pattern moves by one token in raster
    order per slot, so that over four slots each position is decoded equally often. Raises :class:`MaemmError` for odd
    sides.
    """
    slots, height, width = grid
    if height % 2 or width % 2:
        raise MaemmError(f"running cells need even sides, the grid is {height} x {width} ({where}); set decode to null")
    first = torch.arange(_CELL, device=start.device) < round(ratio * _CELL)
    shift = 1 + start[:, None, None] + torch.arange(slots, device=start.device)[:, None]
    cell = first[(torch.arange(_CELL, device=start.device) + shift) % _CELL]  # (R, slots, 4)
    return cell.unflatten(-1, (2, 2)).repeat(1, 1, height // 2, width // 2).flatten(1)
