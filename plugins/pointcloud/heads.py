"""Heads of fine-tuned point cloud models: classes of clouds, and parts of each point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, log_softmax, one_hot

from maemm.contract import Head, Latents, ModalityInput, Preprocessed, gather_tokens
from maemm.contract.errors import MaemmError
from maemm.model.batchnorm import BatchNorm
from maemm.model.model import as_preprocessed
from maemm.model.pooling import pool_tokens

from .grouping import neighbours


class Classifier(Head):
    """[class token, maximum over groups] -> 256 -> 256 -> classes, batch-normalised (Point-MAE, published code).

    Options
        classes: outputs
        hidden: width of the two hidden layers
        dropout: behind each of them
        per_micro_batch: let batch statistics be those of micro-batches
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: int,
        hidden: int = 256,
        dropout: float = 0.5,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        self.classes, self.per_micro_batch = classes, per_micro_batch
        self.layers = nn.Sequential(
            nn.Linear(2 * encoder_dim, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def features(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(B, 2 D)"""
        inputs, latents = model.encode(batch)
        name = next(iter(inputs))
        return pool_tokens(latents, name, inputs[name].plan, "cls+max")

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(B, classes)"""
        return self.layers(self.features(model, batch))


class Parts(Head):
    """The part that each point belongs to (Point-MAE, part segmentation, published code).

    Latents of several blocks, each through the encoder's norm, are spread from the three nearest centres to the
    points (PointNet++, section 3.4), beside their maximum and mean over the cloud and the category of the object.
    The answer is log probabilities (B, N, classes). The category: ``Preprocessed.info["category"]``, (B,) int64.

    Options
        classes: parts, over all categories
        categories: kinds of objects, whose number is an input; 0: none
        layers: blocks whose latents are used, counted from 0
        dropout: behind the first of the last three layers
        per_micro_batch: let batch statistics be those of micro-batches
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: int = 50,
        categories: int = 16,
        layers: tuple[int, ...] = (3, 7, 11),
        dropout: float = 0.5,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        width, told = encoder_dim * len(layers), 64 if categories else 0
        self.classes, self.categories, self.layers = classes, categories, tuple(layers)
        self.per_micro_batch = per_micro_batch
        if categories:
            self.category, self.category_norm = nn.Linear(categories, told, bias=False), BatchNorm(told)
        self.spread = nn.Linear(3 + width, 4 * encoder_dim)
        self.spread_norm = BatchNorm(4 * encoder_dim)
        self.point, self.point_norm = nn.Linear(4 * encoder_dim, 1024), BatchNorm(1024)
        self.mix, self.mix_norm = nn.Linear(1024 + 2 * width + told, 512), BatchNorm(512)
        self.dropout = nn.Dropout(dropout)
        self.narrow, self.narrow_norm = nn.Linear(512, 256), BatchNorm(256)
        self.last = nn.Linear(256, classes)

    def features(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(B, N, 256): the input of the last layer."""
        inputs, latents = model.encode(batch, layers=self.layers)
        name, one = next(iter(inputs.items()))
        missing = [layer for layer in self.layers if layer not in latents.layers]
        if missing:
            raise MaemmError(f"the encoder has no blocks {missing} (head.layers); they count from 0")
        valid = one.preprocessed.valid
        x = torch.cat([model.encoder.norm(latents.layers[layer][name]) for layer in self.layers], -1)
        whole = torch.cat([pool_tokens(Latents({name: x}), name, one.plan, how) for how in ("max", "mean")], -1)
        if self.categories:
            whole = torch.cat([whole, self._category(as_preprocessed(batch[name]), len(x))], -1)
        point = self._spread(one, x)
        for layer, norm in ((self.spread, self.spread_norm), (self.point, self.point_norm)):
            point = norm(layer(point), valid).relu()
        # The layer on the concatenation [point, whole] as two matmuls: one per point, one per cloud.
        own, shared = self.mix.weight.split([point.shape[-1], whole.shape[-1]], dim=1)
        mixed = linear(point, own) + linear(whole, shared, self.mix.bias)[:, None]
        mixed = self.dropout(self.mix_norm(mixed, valid).relu())
        return self.narrow_norm(self.narrow(mixed), valid).relu()

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(B, N, classes) log probabilities of the parts of each point."""
        return log_softmax(self.last(self.features(model, batch)).float(), -1)

    def _category(self, preprocessed: Preprocessed, rows: int) -> Tensor:
        told = preprocessed.info.get("category")
        if told is None:
            raise MaemmError(
                'part segmentation needs the kind of each object; pass Preprocessed(x, info={"category": (B,) int64})'
            )
        told = torch.as_tensor(told, device=preprocessed.x.device)
        if told.shape != (rows,) or told.dtype != torch.long or told.min() < 0 or told.max() >= self.categories:
            raise MaemmError(
                f"category must be {rows} int64 numbers from 0 to {self.categories - 1}, got {told.dtype} "
                f"{tuple(told.shape)}; one per cloud"
            )
        coded = one_hot(told, self.categories).to(self.category.weight.dtype)
        return leaky_relu(self.category_norm(self.category(coded)), 0.2)

    def _spread(self, one: ModalityInput, x: Tensor) -> Tensor:
        """[x y z, latents of the three nearest centres weighted by 1 / squared distance], (B, N, 3 + C)."""
        xyz, index = one.preprocessed.x[..., :3], one.plan.visible
        centers = one.tokens.gather_coords(index)
        near = neighbours(centers, xyz, min(3, centers.shape[1]), one.plan.visible_valid)
        apart = xyz[:, :, None] - gather_tokens(centers, near.flatten(1)).unflatten(1, near.shape[1:])
        weight = 1 / (apart.square().sum(-1) + 1e-8)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        spread = torch.zeros((), dtype=x.dtype, device=x.device)
        for number in range(near.shape[-1]):  # one neighbour at a time: (B, N, C), not (B, N, 3, C)
            spread = spread + gather_tokens(x, near[..., number]) * weight[..., number, None]
        return torch.cat([xyz.to(x.dtype), spread], -1)
