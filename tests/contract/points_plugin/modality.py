"""Point clouds, cut into groups of neighbours (Point-MAE, Pang et al. 2022)."""

from typing import Literal

import torch
from torch import Tensor, nn

from maemm.contract import Modality, Prepared, Tokens, take_tokens


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance over the last axis, summed (x + y) + z as the published kernels do."""
    x, y, z = (a - b).square().unbind(-1)
    return x + y + z


def farthest(points: Tensor, count: int) -> Tensor:
    """(B, N, 3) -> (B, count) indices; starts at 0 and never picks points within 0.0316 of the origin."""
    candidate = points.square().sum(-1) > 1e-3
    nearest = torch.where(candidate, torch.inf, -1.0)
    chosen = [torch.zeros_like(points[:, 0, 0], dtype=torch.long)]
    for _ in range(count - 1):
        last = take_tokens(points, chosen[-1][:, None])
        nearest = torch.minimum(nearest, squared(points, last))
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, 1)


class Grouped(nn.Module):
    """Mini-PointNet: (B, G, K, 3) -> (B, G, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256))
        self.second = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, dim))

    def forward(self, groups: Tensor) -> Tensor:
        sizes = groups.shape[:3]
        local = self.first(groups.flatten(0, 2)).unflatten(0, sizes)
        whole = local.max(2, keepdim=True).values.expand_as(local)
        points = self.second(torch.cat([whole, local], -1).flatten(0, 2)).unflatten(0, sizes)
        return points.max(2).values


def position_mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))


class PointCloud(Modality):
    """(B, N, 3) points; a token is a centre and its nearest points, relative to it."""

    def __init__(self, *, groups: int = 64, group_size: int = 32, loss: Literal["cdl1", "cdl2"] = "cdl2"):
        super().__init__()
        self.groups, self.group_size, self.loss_kind = groups, group_size, loss

    def tokenize(self, prepared: Prepared) -> Tokens:
        points = prepared.x
        centers = take_tokens(points, farthest(points, self.groups))
        distance = squared(centers[:, :, None], points[:, None])
        index = distance.argsort(stable=True, dim=-1)[..., : self.group_size]
        groups = take_tokens(points, index.flatten(1)).unflatten(1, index.shape[1:])
        return Tokens(groups - centers[:, :, None], centers)

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.embedding, self.positions = Grouped(encoder_dim), position_mlp(encoder_dim)
        if decoder_dim is not None:
            self.decoder = nn.Module()
            self.decoder.positions = position_mlp(decoder_dim)

    def output_dim(self) -> int:
        return 3 * self.group_size

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        """All groups, then the chosen ones: hidden groups count in the published batch statistics."""
        return take_tokens(self.embedding(tokens.values), index, tokens.rows)

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        mlp = self.positions if role == "encoder" else self.decoder.positions
        return mlp(tokens.take_coords(index))

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return tokens.take(index).flatten(2).float()

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Chamfer distance of each group, squared (cdl2) or not (cdl1)."""
        a, b = (one.float().unflatten(-1, (-1, 3)) for one in (pred, target))
        distance = squared(a[..., :, None, :], b[..., None, :, :])
        ways = [distance.min(axis).values for axis in (-1, -2)]
        if self.loss_kind == "cdl1":
            return sum(way.sqrt().mean(-1) for way in ways) / 2
        return sum(way.mean(-1) for way in ways)

    def restore(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return pred.float().unflatten(-1, (-1, 3))
