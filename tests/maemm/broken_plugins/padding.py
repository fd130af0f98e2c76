"""Parts that see padding, which repeats a token, so that other values in padded elements change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import (
    Latents,
    MaemmError,
    Modality,
    ModalityInput,
    Objective,
    Output,
    Plan,
    Preprocessed,
    Term,
    Tokens,
)
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT
from maemm.model.heads import Linear
from maemm.model.objectives.reconstruct import Reconstruct

from .learners import Average
from .sound import Particles


def _unpadded(inputs: dict[str, ModalityInput]) -> dict[str, ModalityInput]:
    return {name: replace(x, plan=replace(x.plan, visible_valid=None)) for name, x in inputs.items()}


class PaddedViT(ViT):
    """Attends to padding. It serves a single modality."""

    def __init__(self, names: list[str], *, dim: int = 48, depth: int = 1, heads: int = 2):
        if len(names) > 1:
            raise MaemmError("PaddedViT serves one modality; use vit")
        super().__init__(names, dim=dim, depth=depth, heads=heads)

    def forward(self, inputs: dict[str, ModalityInput], *rest: Any, **options: Any) -> Latents:
        return super().forward(_unpadded(inputs), *rest, **options)


class PaddedDecoder(Full):
    """Attends to padding after what is visible, where there is a single modality."""

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        return super().forward(latents, _unpadded(inputs) if len(inputs) == 1 else inputs, modalities)


class PaddedLoss(Reconstruct):
    """Counts padded tokens like others."""

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        counts = self.counts(out.plans)
        return {
            f"{self.name}.{name}": Term(loss.sum(), counts[f"{self.name}.{name}"]) for name, loss in out.loss.items()
        }

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {f"{self.name}.{name}": torch.tensor(float(plan.predict.numel())) for name, plan in plans.items()}


class PaddedSpread(Objective):
    """Compares the samples of a batch by the mean of their latents, padding included."""

    coupled = True

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        (latents,) = out.encoded.values()
        return {self.name: Term(latents.float().mean(1).var(0).sum(), self.counts(out.plans)[self.name])}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {self.name: torch.tensor(1.0)}


class PaddedPool(Linear):
    """Pools padded tokens too."""

    def features(self, model: Any, batch: dict[str, Any]) -> Tensor:
        _, latents = model.encode(batch)
        (tokens,) = latents.tokens.values()
        return self.norm(tokens.mean(1))


class PaddedTarget(Average):
    """Subtracts the mean over all tokens of a sample, padding included."""

    def precompute(self, model: nn.Module, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        return {name: x - x.mean(1, keepdim=True) for name, x in super().precompute(model, inputs).items()}


class PaddedSet(Particles):
    """Scales its tokens by the length of the longest set of the batch."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        return replace(tokens, values=tokens.values * (tokens.count / 40))
