"""Heads of fine-tuned point cloud models: classification of clouds, and segmentation into parts."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, log_softmax, one_hot

from maemm.contract import Head, Latents, ModalityInput, Preprocessed, gather_tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegativeInt, PositiveInt, Rate
from maemm.model.batchnorm import BatchNorm
from maemm.model.model import Model, as_preprocessed
from maemm.model.pooling import pool_tokens

from .grouping import neighbours


class Classifier(Head):
    """[class token, maximum over groups] -> 256 -> 256 -> classes, batch-normalised (Point-MAE, published code).

    Options
        classes: outputs
        hidden: width of the two hidden layers
        dropout: after each of them
        per_micro_batch: compute batch statistics per micro-batch
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: PositiveInt,
        hidden: PositiveInt = 256,
        dropout: Rate = 0.5,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        self.classes, self.per_micro_batch = classes, per_micro_batch
        self.layers = nn.Sequential(
            nn.Linear(2 * encoder_dim, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def features(self, model: Model, batch: dict[str, Any]) -> Tensor:
        """(B, 2 D)"""
        inputs, latents = model.encode(batch)
        name = next(iter(inputs))
        return pool_tokens(latents, name, inputs[name].plan, "cls+max")

    def forward(self, model: Model, batch: dict[str, Any]) -> Tensor:
        """(B, classes)"""
        return self.layers(self.features(model, batch))


class Parts(Head):
    """Part segmentation: a class for each point (Point-MAE, published code).

    The input is the latents of several blocks, each after the encoder's norm, interpolated from the three nearest
    centres to the points (PointNet++, section 3.4); their maximum and mean over the cloud; and the category of the
    object, ``Preprocessed.info["category"]``, (B,) int64. The output is log probabilities (B, N, classes).

    Options
        classes: parts, over all categories
        categories: number of object categories, an input of the head; 0: none
        layers: blocks whose latents are used, counted from 0
        dropout: after the first of the last three layers
        per_micro_batch: compute batch statistics per micro-batch
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: PositiveInt = 50,
        categories: NonNegativeInt = 16,
        layers: Annotated[tuple[NonNegativeInt, ...], MinLen(1)] = (3, 7, 11),
        dropout: Rate = 0.5,
        per_micro_batch: bool = False,
    ):
        super().__init__()
        width, category_dim = encoder_dim * len(layers), 64 if categories else 0
        self.classes, self.categories, self.layers = classes, categories, tuple(layers)
        self.per_micro_batch = per_micro_batch
        if categories:
            self.category = nn.Linear(categories, category_dim, bias=False)
            self.category_norm = BatchNorm(category_dim)
        self.spread = nn.Linear(3 + width, 4 * encoder_dim)
        self.spread_norm = BatchNorm(4 * encoder_dim)
        self.point, self.point_norm = nn.Linear(4 * encoder_dim, 1024), BatchNorm(1024)
        self.mix, self.mix_norm = nn.Linear(1024 + 2 * width + category_dim, 512), BatchNorm(512)
        self.dropout = nn.Dropout(dropout)
        self.narrow, self.narrow_norm = nn.Linear(512, 256), BatchNorm(256)
        self.last = nn.Linear(256, classes)

    def features(self, model: Model, batch: dict[str, Any]) -> Tensor:
        """(B, N, 256): the input of the last layer."""
        inputs, latents = model.encode(batch, layers=self.layers)
        name, modality_input = next(iter(inputs.items()))
        missing = [layer for layer in self.layers if layer not in latents.layers]
        if missing:
            raise MaemmError(f"the encoder has no blocks {missing} (head.layers); give numbers from 0")
        valid = modality_input.preprocessed.valid
        x = torch.cat([model.encoder.norm(latents.layers[layer][name]) for layer in self.layers], -1)
        pooled = [pool_tokens(Latents({name: x}), name, modality_input.plan, pool) for pool in ("max", "mean")]
        whole = torch.cat(pooled, -1)
        if self.categories:
            whole = torch.cat([whole, self._embed_category(as_preprocessed(batch[name]), len(x))], -1)
        point = self._interpolate(modality_input, x)
        for layer, norm in ((self.spread, self.spread_norm), (self.point, self.point_norm)):
            point = norm(layer(point), valid).relu()
        # The layer on the concatenation [point | whole] as two matmuls: one per point, one per cloud.
        own, shared = self.mix.weight.split([point.shape[-1], whole.shape[-1]], dim=1)
        mixed = linear(point, own) + linear(whole, shared, self.mix.bias)[:, None]
        mixed = self.dropout(self.mix_norm(mixed, valid).relu())
        return self.narrow_norm(self.narrow(mixed), valid).relu()

    def forward(self, model: Model, batch: dict[str, Any]) -> Tensor:
        """(B, N, classes) log probabilities of the parts of each point."""
        return log_softmax(self.last(self.features(model, batch)).float(), -1)

    def _embed_category(self, preprocessed: Preprocessed, rows: int) -> Tensor:
        category = preprocessed.info.get("category")
        if category is None:
            raise MaemmError(
                "part segmentation needs the category of each object; "
                'pass Preprocessed(x, info={"category": (B,) int64})'
            )
        category = torch.as_tensor(category, device=preprocessed.x.device)
        valid = category.shape == (rows,) and category.dtype == torch.long
        if not valid or category.min() < 0 or category.max() >= self.categories:
            raise MaemmError(
                f"category must be {rows} int64 numbers from 0 to {self.categories - 1}, got {category.dtype} "
                f"{tuple(category.shape)}; give one per cloud"
            )
        coded = one_hot(category, self.categories).to(self.category.weight.dtype)
        return leaky_relu(self.category_norm(self.category(coded)), 0.2)

    def _interpolate(self, modality_input: ModalityInput, x: Tensor) -> Tensor:
        """(B, N, 3 + C): x y z, and latents of the three nearest centres, weighted by 1 / squared distance."""
        xyz, plan = modality_input.preprocessed.x[..., :3], modality_input.plan
        centers = modality_input.tokens.gather_coords(plan.visible)
        near = neighbours(centers, xyz, min(3, centers.shape[1]), plan.visible_valid)
        difference = xyz[:, :, None] - gather_tokens(centers, near.flatten(1)).unflatten(1, near.shape[1:])
        weight = 1 / (difference.square().sum(-1) + 1e-8)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        interpolated = torch.zeros((), dtype=x.dtype, device=x.device)
        for k in range(near.shape[-1]):  # one neighbour at a time: (B, N, C) in memory, not (B, N, 3, C)
            interpolated = interpolated + gather_tokens(x, near[..., k]) * weight[..., k, None]
        return torch.cat([xyz.to(x.dtype), interpolated], -1)
