"""Pooling: from tokens to one vector per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maemm.contract import Latents, Plan
from maemm.contract.errors import MaemmError

POOLS = ("mean", "cls", "max", "cls+max", "latents")


def pool_tokens(latents: Latents, name: str, plan: Plan, how: str) -> Tensor:
    """Tokens (R, V, D) of one modality -> (R, D), or (R, 2D) for "cls+max". Padding is left out.

    "cls" is the mean of the class tokens (Pixio has several), "latents" that of latent tokens (R, L, C) -> (R, C).
    Raises :class:`MaemmError` where there are none, and for an unknown pool.
    """
    if how not in POOLS:
        raise MaemmError(f"unknown pool {how!r}; choose one of {', '.join(POOLS)}")
    tokens, valid = latents.tokens[name], plan.visible_valid
    if how == "mean":
        return mean_of_tokens(tokens, [plan])
    if how == "latents":
        return latent_tokens_of(latents, name).mean(1)
    if how == "max":
        return _max(tokens, valid)
    prefix = latents.prefix.get(name, latents.prefix.get("joint"))
    if prefix is None:
        raise MaemmError(f"pool {how!r} needs a class token, which this encoder does not have; use mean or max")
    cls = prefix.mean(1)
    return cls if how == "cls" else torch.cat([cls, _max(tokens, valid)], -1)


def latent_tokens_of(latents: Latents, name: str) -> Tensor:
    """The latent tokens (R, L, C) that describe a modality. Raises :class:`MaemmError` where there are none."""
    tokens = latents.latent_tokens.get(name, latents.latent_tokens.get("joint"))
    if tokens is None:
        raise MaemmError("this encoder has no latent tokens; give weights with encoder.type=latent, or pool mean")
    return tokens


def mean_of_tokens(tokens: Tensor, plans: Sequence[Plan]) -> Tensor:
    """Mean over tokens (R, V, D), visible ones of one or several modalities side by side, without padding -> (R, D).

    Zeros where no token is visible.
    """
    if not tokens.shape[1]:
        return tokens.sum(1)
    if all(plan.visible_valid is None for plan in plans):
        return tokens.mean(1)
    parts = [
        torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
        for plan in plans
    ]
    weight = torch.cat(parts, 1).to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def mean_of_all(latents: Latents, plans: Mapping[str, Plan]) -> Tensor:
    """Mean over the visible tokens of all modalities and the prefix tokens, without padding -> (R, D)."""
    prefix = list(latents.prefix.values())
    tokens = torch.cat([*(latents.tokens[name] for name in plans), *prefix], 1)
    seen = [
        torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
        for plan in plans.values()
    ]
    seen += [torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) for part in prefix]
    weight = torch.cat(seen, 1).to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def _max(tokens: Tensor, valid: Tensor | None) -> Tensor:
    if valid is not None:
        tokens = tokens.masked_fill(~valid[..., None], -torch.inf)
    return tokens.amax(1)


def pool_and_norm(latents: Latents, name: str, plan: Plan, how: str, norm: str, layer: nn.Module) -> Tensor:
    """:func:`pool_tokens`, then ``layer`` if ``norm`` is "after"; otherwise ``latents`` are used as they are."""
    if how == "latents" and norm == "after":
        raise MaemmError("latent tokens are projected behind the norm, so that no norm can follow; use norm before")
    pooled = pool_tokens(latents, name, plan, how)
    return layer(pooled) if norm == "after" else pooled
