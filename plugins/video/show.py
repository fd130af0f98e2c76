"""Clips as pictures for people: contact sheets and animations."""

from __future__ import annotations

import torch
from torch import Tensor

_FRAMES, _COLUMNS = 8, 4


def contact_sheet(pixels: Tensor) -> Tensor:
    """(C, T, H, W) of 0 .. 1, NaN where hidden -> (h, w, 3): up to eight frames in rows of four, hidden ones grey."""
    frames = _coloured(pixels)
    frames = frames[torch.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().long()]
    columns = min(_COLUMNS, len(frames))
    gap = max(1, frames.shape[1] // 32)
    frames = torch.nn.functional.pad(frames, (0, 0, 0, gap, 0, gap), value=1.0)
    short = -len(frames) % columns
    frames = torch.cat([frames, torch.ones(short, *frames.shape[1:])])
    rows = [torch.cat(list(frames[i : i + columns]), dim=1) for i in range(0, len(frames), columns)]
    return torch.cat(rows)[:-gap, :-gap]


def _coloured(pixels: Tensor) -> Tensor:
    """(C, T, H, W) -> (T, H, W, 3), grey where a pixel is NaN."""
    pixels = pixels[: 3 if len(pixels) >= 3 else 1]
    hidden = pixels.isnan().any(0)
    shown = pixels.clamp(0, 1).nan_to_num(0).expand(3, -1, -1, -1)
    return torch.where(hidden, 0.6, shown).permute(1, 2, 3, 0)
