"""Clips (B, 3, T, H, W) cut into tubes; what differs from the generic grid is the positions and the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from maemm.contract import Prepared, Tokens
from maemm.grid import GridModality
from maemm.patches import patchify


class FlatSinCos(nn.Module):
    """1-D sine-cosine code of the flat token number n: n / 10000^(2 floor(j/2) / D), even j sine, odd j cosine."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        pair = torch.arange(self.dim, dtype=torch.float64, device=index.device) // 2
        angle = index[..., None].double() / 10000 ** (2 * pair / self.dim)
        return torch.where(torch.arange(self.dim, device=index.device) % 2 == 0, angle.sin(), angle.cos()).float()


class Separable(nn.Module):
    """One learned table for the time slot, one for the place in the frame."""

    def __init__(self, dim: int, grid: tuple[int, ...]):
        super().__init__()
        slots, rows, columns = grid
        self.temporal = nn.Parameter(torch.randn(1, slots, dim) * 0.02)
        self.spatial = nn.Parameter(torch.randn(1, rows * columns, dim) * 0.02)

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        area = self.spatial.shape[1]
        return self.spatial[0][index % area] + self.temporal[0][index // area]


class Clip(GridModality):
    """VideoMAE: flat sine-cosine positions; targets in display units, normalised per token and colour.

    Options
        mean: subtracted from each colour before the network
        std: each colour was divided by it
    """

    def __init__(
        self,
        *,
        size: Sequence[int] = (16, 224, 224),
        patch: Sequence[int] = (2, 16, 16),
        channels: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **rest,
    ):
        super().__init__(size=size, patch=patch, channels=channels, **rest)
        self.mean, self.std = mean, std

    def make_positions(self, kind: str, dim: int) -> nn.Module:
        return FlatSinCos(dim)

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(u - mean) / (sqrt(var) + eps) over the token's pixels of one colour, unbiased variance (VideoMAE)."""
        pixels = self._display(tokens, index)
        if self.normalize == "patch":
            mean, scale = self._moments(pixels)
            pixels = (pixels - mean) / scale
        return pixels.flatten(-2)

    def restore(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        pixels = pred.float().unflatten(-1, (-1, self.channels))
        if self.normalize == "patch":
            mean, scale = self._moments(self._display(tokens, index))
            pixels = pixels * scale + mean
        return ((pixels - pixels.new_tensor(self.mean)) / pixels.new_tensor(self.std)).flatten(-2)

    def _display(self, tokens: Tokens, index: Tensor) -> Tensor:
        pixels = tokens.take(index).float().unflatten(-1, (-1, self.channels))
        return pixels * pixels.new_tensor(self.std) + pixels.new_tensor(self.mean)

    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels.mean(-2, keepdim=True), pixels.std(-2, keepdim=True) + self.normalize_eps


class Frames(GridModality):
    """MAE-ST: learned positions, separable or joint; only some frames of the clip are predicted.

    Options
        predicted: frames of a clip that are predicted, evenly spaced
        position: separable (a table of time, a table of space) or learned (one table)
    """

    def __init__(self, *, predicted: int, position: Literal["separable", "learned"] = "separable", **rest):
        super().__init__(position=position, **rest)
        self.predicted = (self.patch[0] * predicted // self.size[0], *self.patch[1:])

    def make_positions(self, kind: str, dim: int) -> nn.Module:
        return Separable(dim, self.grid) if kind == "separable" else super().make_positions(kind, dim)

    def tokenize(self, prepared: Prepared) -> Tokens:
        tokens = super().tokenize(prepared)
        count = tokens.grid[0] * self.predicted[0]
        chosen = torch.linspace(0, prepared.x.shape[2] - 1, count).long().to(prepared.x.device)
        return replace(tokens, context={"predicted": patchify(prepared.x[:, :, chosen], self.predicted)})

    def output_dim(self) -> int:
        return self.channels * torch.Size(self.predicted).numel()

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().target(replace(tokens, values=tokens.context["predicted"]), index)

    def restore(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Frames that are not predicted repeat the one before."""
        values = super().restore(pred, replace(tokens, values=tokens.context["predicted"]), index)
        frames = values.unflatten(-1, (self.predicted[0], -1))
        return frames.repeat_interleave(self.patch[0] // self.predicted[0], -2).flatten(-2)
