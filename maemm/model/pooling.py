"""From tokens to one vector per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maemm.contract import Latents, Plan
from maemm.contract.errors import MaemmError

POOLS = ("mean", "cls", "max", "cls+max")


def pool_tokens(latents: Latents, name: str, plan: Plan, how: str) -> Tensor:
    """Tokens of one modality -> (B, D), or (B, 2D) for "cls+max". Padding is left out.

    "cls" is the mean of the class tokens (Pixio has several). Raises :class:`MaemmError` where there are none.
    """
    if how not in POOLS:
        raise MaemmError(f"unknown pool {how!r}; choose one of {', '.join(POOLS)}")
    tokens, valid = latents.tokens[name], plan.visible_valid
    if how == "mean":
        return mean_of_tokens(tokens, [plan])
    if how == "max":
        return _max(tokens, valid)
    prefix = latents.prefix.get(name, latents.prefix.get("joint"))
    if prefix is None:
        raise MaemmError(f"pool {how!r} needs a class token, and this encoder has none; use mean or max")
    cls = prefix.mean(1)
    return cls if how == "cls" else torch.cat([cls, _max(tokens, valid)], -1)


def mean_of_tokens(tokens: Tensor, plans: Sequence[Plan]) -> Tensor:
    """Visible tokens of one modality, or of several side by side -> (R, D). Padding is left out."""
    if all(plan.visible_valid is None for plan in plans):
        return tokens.mean(1)
    parts = [
        torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
        for plan in plans
    ]
    fraction = torch.cat(parts, 1).to(tokens.dtype)[..., None]
    return (tokens * fraction).sum(1) / fraction.sum(1).clamp(min=1)


def _max(tokens: Tensor, valid: Tensor | None) -> Tensor:
    if valid is not None:
        tokens = tokens.masked_fill(~valid[..., None], -torch.inf)
    return tokens.amax(1)


def pool_and_norm(latents: Latents, name: str, plan: Plan, how: str, norm: str, layer: nn.Module) -> Tensor:
    """``norm`` "before" and "none": the latents come as they are; "after": ``layer`` on the pooled vector."""
    pooled = pool_tokens(latents, name, plan, how)
    return layer(pooled) if norm == "after" else pooled
