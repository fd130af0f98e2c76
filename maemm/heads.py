"""The classifier of a fine-tuned model."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from maemm.contract import Head
from maemm.pooling import pool_tokens


class Linear(Head):
    """Pool, optional norm, linear (MAE, fine-tuning: mean of the patch tokens, then a new norm).

    Options
        classes: outputs
        pool: mean, cls, max or cls+max
        norm: before: the encoder's final norm, then the pool; after: pool, then an own norm
        eps: of the own norm
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        classes: int,
        pool: Literal["mean", "cls", "max", "cls+max"] = "mean",
        norm: Literal["before", "after"] = "after",
        eps: float = 1e-6,
    ):
        super().__init__()
        width = encoder_dim * (2 if pool == "cls+max" else 1)
        self.classes, self.pool, self.norm_when = classes, pool, norm
        self.norm = nn.LayerNorm(width, eps=eps) if norm == "after" else nn.Identity()
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def features(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        inputs, latents = model.encode(batch, norm=self.norm_when == "before")
        name = next(iter(inputs))
        return self.norm(pool_tokens(latents, name, inputs[name].plan, self.pool))

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return self.linear(self.features(model, batch))
