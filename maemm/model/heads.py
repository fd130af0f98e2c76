"""Classifiers on top of an encoder: for fine-tuning, and for linear probes that train with augmentation."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from maemm.contract import Head
from maemm.contract.options import NonNegative, PositiveInt, Rate
from maemm.model.batchnorm import BatchNorm
from maemm.model.pooling import mean_of_all, pool_tokens


class Linear(Head):
    """Pool, optional norm, linear (MAE, fine-tuning: mean of the patch tokens, then a new norm).

    Options
        classes: number of outputs
        pool: mean, cls, max or cls+max, of the tokens of the first modality; all: mean over the tokens of all
            modalities of the batch and the class tokens (MultiMAE)
        norm: before: the encoder's final norm, then the pool; after: the pool, then a norm of the head's own
        eps: of the head's own norm
        dropout: before the last layer
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: PositiveInt,
        pool: Literal["mean", "cls", "max", "cls+max", "all"] = "mean",
        norm: Literal["before", "after"] = "after",
        eps: NonNegative = 1e-6,
        dropout: Rate = 0.0,
    ):
        super().__init__()
        width = encoder_dim * (2 if pool == "cls+max" else 1)
        self.classes, self.pool, self.norm_when = classes, pool, norm
        self.norm = nn.LayerNorm(width, eps=eps) if norm == "after" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def features(self, model: Any, batch: dict[str, Any]) -> Tensor:
        inputs, latents = model.encode(batch, norm=self.norm_when == "before")
        if self.pool == "all":
            return self.norm(mean_of_all(latents, {name: x.plan for name, x in inputs.items()}))
        name = next(iter(inputs))
        return self.norm(pool_tokens(latents, name, inputs[name].plan, self.pool))

    def forward(self, model: Any, batch: dict[str, Any]) -> Tensor:
        return self.linear(self.dropout(self.features(model, batch)))


class Probe(Head):
    """The published linear probe on frozen features: pool, batch normalisation without parameters, linear.

    MAE, appendix A.1: on the class token after the encoder's final norm. Train it with ``train.trainable: head``.

    Options
        classes: number of outputs
        pool: cls, mean, max or cls+max
        per_micro_batch: allow batch statistics of micro-batches
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: PositiveInt,
        pool: Literal["cls", "mean", "max", "cls+max"] = "cls",
        per_micro_batch: bool = False,
    ):
        super().__init__()
        width = encoder_dim * (2 if pool == "cls+max" else 1)
        self.classes, self.pool, self.per_micro_batch = classes, pool, per_micro_batch
        self.norm = BatchNorm(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def features(self, model: Any, batch: dict[str, Any]) -> Tensor:
        inputs, latents = model.encode(batch)
        name = next(iter(inputs))
        return pool_tokens(latents, name, inputs[name].plan, self.pool)

    def forward(self, model: Any, batch: dict[str, Any]) -> Tensor:
        return self.linear(self.norm(self.features(model, batch)))
