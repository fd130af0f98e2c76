"""Block masking: hide one coherent region, or all but a few of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.options import Repeats
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count, noise_order, plan_from_order
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio

Shape = Literal["round", "square"]


class Block(RatioMasking):
    """Hide the tokens nearest to a random one; exact counts. On point clouds this is Point-MAE's "block" masking.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        shape: round: Euclidean distance between coordinates; square: the largest difference along an axis
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(self, *, ratio: Ratio = 0.5, shape: Shape = "round", count: Count = "floor_hidden"):
        self.ratio, self.shape, self.count = read_ratio(ratio), shape, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        far_first = -rank_by_distance(name, tokens, rng, 1, self.shape)  # the farthest are visible
        return plan_from_order(noise_order(far_first, tokens), tokens, self.ratio_of(name, rng), self.count)


class InverseBlock(RatioMasking):
    """Show the tokens nearest to random ones, hide the rest; exact counts (after data2vec 2.0, section 3.3).

    A few compact regions, on any coordinates; ``scattered_blocks`` has the published form on grids.

    Options
        ratio: fraction of the tokens that is hidden; [low, high], or {mean, std, low, high}: drawn for each batch
        blocks: visible regions, which together have the visible tokens
        shape: round: Euclidean distance between coordinates; square: the largest difference along an axis
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(
        self, *, ratio: Ratio = 0.8, blocks: Repeats = 1, shape: Shape = "square", count: Count = "floor_visible"
    ):
        self.ratio, self.blocks, self.shape, self.count = read_ratio(ratio), blocks, shape, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        near_first = rank_by_distance(name, tokens, rng, self.blocks, self.shape)
        return plan_from_order(noise_order(near_first, tokens), tokens, self.ratio_of(name, rng), self.count)


def rank_by_distance(name: str, tokens: Tokens, rng: Rng, centres: int, shape: Shape) -> Tensor:
    """(B, N) float rank of every token by its distance to the nearest of ``centres`` random valid tokens: 0 is nearest.

    Ties are broken at random.
    """
    device = tokens.values.device
    uniform = rng.uniform(f"mask/{name}/centre", centres, device=device)
    among = tokens.count if tokens.valid is None else tokens.valid.sum(1, keepdim=True)
    index = (uniform * among).long()
    if tokens.valid is not None:  # the index-th VALID token
        ranked = torch.where(tokens.valid, 0, 1).argsort(stable=True, dim=1)
        index = ranked.gather(1, index.clamp(max=tokens.count - 1))
    coords = tokens.coords.expand(tokens.batch, -1, -1).float()
    centre = coords.gather(1, index[..., None].expand(-1, -1, coords.shape[-1]))
    difference = coords[:, :, None] - centre[:, None]  # (B, N, centres, A)
    distance = difference.abs().amax(-1) if shape == "square" else difference.square().sum(-1)
    ties = rng.uniform(f"mask/{name}/ties", tokens.count, device=device)
    # Coordinates may have any scale, so no noise is added to distances: shuffle, then sort stably by distance.
    order = ties.argsort(1)
    order = order.gather(1, distance.amin(-1).gather(1, order).argsort(stable=True, dim=1))
    return torch.empty_like(ties).scatter_(1, order, torch.arange(float(tokens.count), device=device).expand_as(ties))
