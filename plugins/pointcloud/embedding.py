"""The embedding of point groups: a small PointNet (Point-MAE, section 3.1), without redundant computation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from maemm.contract import Tokens, gather_tokens
from maemm.model.batchnorm import BatchNorm

Stats = Literal["all", "visible"]
WIDTH = 512  # in the published code, for any width of the model


class MiniPointNet(nn.Module):
    """Groups (B, G, K, C) -> (B, G, D): an MLP on points, max, an MLP on [max | point], max.

    The published layer on the concatenation [max | point] is two matmuls here: one per group, one per point. In
    training with ``stats: all``, all groups pass up to the second batch normalisation, whose statistics thus include
    hidden groups as published; only the groups of ``index`` pass the last layer.
    """

    def __init__(self, channels: int, dim: int, stats: Stats = "all", width: int = WIDTH):
        super().__init__()
        first, point, mixed = width // 4, width // 2, width
        self.stats = stats
        self.first, self.first_norm = nn.Linear(channels, first), BatchNorm(first)
        self.point = nn.Linear(first, point)
        self.mix, self.mix_norm = nn.Linear(2 * point, mixed), BatchNorm(mixed)
        self.last = nn.Linear(mixed, dim)
        for layer in (self.first, self.point, self.mix, self.last):  # published initialisation
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """The groups ``index`` (R, V) of ``tokens``, whose values are (B, G, K, C) -> (R, V, D)."""
        if self.training and self.stats == "all":
            groups, valid, keep = tokens.values, tokens.valid, _flat_index(tokens, index)
        else:
            groups, valid, keep = tokens.gather(index), self._counted(tokens, index), None
        mixed = self._mix(groups.flatten(0, 1), None if valid is None else valid.flatten(), keep)
        return self.last(mixed).max(1).values.unflatten(0, index.shape)

    def _mix(self, groups: Tensor, valid: Tensor | None, keep: Tensor | None) -> Tensor:
        """(T, K, C) -> (T, K, width), or of the groups ``keep`` (m,) alone (m, K, width)."""
        point = self.point(self.first_norm(self.first(groups), valid).relu_())
        whole, own = self.mix.weight.split(point.shape[-1], dim=1)
        mixed = linear(point, own).add_(linear(point.max(1).values, whole, self.mix.bias)[:, None])
        return self.mix_norm(mixed, valid, keep).relu_()

    def _counted(self, tokens: Tokens, index: Tensor) -> Tensor | None:
        """(R, V) bool, for batch statistics: False for padding, which repeats a token."""
        if tokens.valid is None or not self.training:
            return None
        repeated = nn.functional.pad(index[:, 1:] == index[:, :-1], (1, 0))
        return gather_tokens(tokens.valid, index, tokens.rows) & ~repeated


def _flat_index(tokens: Tokens, index: Tensor) -> Tensor:
    """(R, V) -> (R V,) index into the groups of all samples, flattened."""
    rows = torch.arange(tokens.batch, device=index.device) if tokens.rows is None else tokens.rows
    return (rows[:, None] * tokens.count + index).flatten()
