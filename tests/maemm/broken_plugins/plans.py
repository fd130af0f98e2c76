"""Maskings, encoders and a decoder that break a rule of sets of plans, budgets, shared passes or guides, one each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract import (
    Latents,
    Masking,
    Modality,
    ModalityInput,
    PerModalityMasking,
    Plan,
    Tokens,
)
from maemm.contract.rng import Rng
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT
from maemm.model.masking.counts import noise_order, plan_from_order
from maemm.model.masking.rectangles import batch_rng


def _order(name: str, tokens: Tokens, rng: Rng) -> Tensor:
    return noise_order(rng.uniform(f"mask/{name}", tokens.count), tokens)


class SecondSetOverlaps(Masking):
    """Two sets of plans; the second counts tokens that are visible."""

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: Any = None) -> list[dict[str, Plan]]:
        good = {name: plan_from_order(_order(name, x, rng), x, 0.5, "floor_visible") for name, x in tokens.items()}
        bad = {
            name: Plan(plan.visible, plan.visible, counted=torch.ones(plan.visible.shape))
            for name, plan in good.items()
        }
        return [good, bad]


class OtherPass(PerModalityMasking):
    """Rows share a pass of the encoder although they see other tokens."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        plan = plan_from_order(_order(name, tokens, rng), tokens, 0.5, "floor_visible")
        samples = torch.arange(tokens.batch)
        return replace(
            plan,
            visible=torch.cat([plan.visible, plan.predict]),
            predict=torch.cat([plan.predict, plan.visible]),
            counted=torch.ones(2 * tokens.batch, plan.predict.shape[1]),
            rows=samples.repeat(2),
            passes=samples.repeat(2),
            first=samples,
        )


class HalfPass(PerModalityMasking):
    """Says which rows share a pass, but not which row each pass is."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        plan = plan_from_order(_order(name, tokens, rng), tokens, 0.5, "floor_visible")
        return replace(plan, passes=torch.arange(tokens.batch))


class RowWise(PerModalityMasking):
    """Hides as many tokens as the noise has it."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        ratio = 0.25 + 0.5 * float(rng.uniform("ratio").mean())
        return plan_from_order(_order(name, tokens, rng), tokens, ratio, "floor_visible")


class Unsaid(PerModalityMasking):
    """Draws a ratio for each step, and does not say that its plans have many shapes."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        ratio = 0.25 + 0.5 * batch_rng(rng).floats("ratio", 1)[0]
        return plan_from_order(_order(name, tokens, rng), tokens, ratio, "floor_visible")


class BudgetOfEach(PerModalityMasking):
    """Its plans say that all modalities together show 8 tokens, but each of them does."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        order = _order(name, tokens, rng)
        return Plan(order[:, :8].sort(1).values, order[:, 8:].sort(1).values, budget=8)


class BudgetOfOne(PerModalityMasking):
    """Only the plans of the first modality have the budget."""

    first: str | None = None

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        self.first = self.first or name
        order = _order(name, tokens, rng)
        budget = 16 if name == self.first else None
        return Plan(order[:, :8].sort(1).values, order[:, 8:].sort(1).values, budget=budget)


class Curious(ViT):
    """Adds how many tokens are predicted to the latents, and does not say so."""

    def forward(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], **more: Any) -> Latents:
        latents = super().forward(inputs, modalities, **more)
        latents.tokens = {name: x + 0.1 * inputs[name].plan.predict.shape[1] for name, x in latents.tokens.items()}
        return latents


class PrefixGuide(ViT):
    """Its guide has a column for the class token."""

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict:
        guides = super().guide(inputs, modalities, kind)
        return {name: torch.cat([x[:, :1], x], 1) for name, x in guides.items()}


class BatchGuide(ViT):
    """Its guide is compared with that of the other samples."""

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict:
        return {name: x - x.mean(0) for name, x in super().guide(inputs, modalities, kind).items()}


class LatentPerSample(ViT):
    """One latent for all tokens."""

    def forward(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], **more: Any) -> Latents:
        latents = super().forward(inputs, modalities, **more)
        latents.tokens = {name: x.mean(1, keepdim=True) for name, x in latents.tokens.items()}
        return latents


class Placeless(Full):
    """Does not add positions to mask tokens."""

    def forward(self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]) -> dict:
        predictions = super().forward(latents, inputs, modalities)
        return {name: x.mean(1, keepdim=True).expand_as(x) for name, x in predictions.items()}
