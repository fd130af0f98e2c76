"""Block masking: hide one coherent region, or show it alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maemm.contract import PerModalityMasking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count, check_ratio, noise_order, plan_from_order

Shape = Literal["round", "square"]


class Block(PerModalityMasking):
    """Hide the tokens nearest to a random one; exact counts. On a set of points as Point-MAE's "block".

    Options
        ratio: share of the tokens that is hidden
        shape: round: Euclidean distance between coordinates; square: the largest difference along an axis
        count: how the ratio becomes a number
    """

    def __init__(self, *, ratio: float = 0.5, shape: Shape = "round", count: Count = "floor_hidden"):
        check_ratio(ratio)
        self.ratio, self.shape, self.count = ratio, shape, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        far_first = -rank_by_distance(name, tokens, rng, 1, self.shape)  # kept first = farthest first
        return plan_from_order(noise_order(far_first, tokens), tokens, self.ratio, self.count)


class InverseBlock(PerModalityMasking):
    """Show the tokens nearest to random ones, hide the rest; exact counts (data2vec 2.0, section 3.3).

    Options
        ratio: share of the tokens that is hidden
        blocks: regions that are shown; they grow evenly until together they have their share
        shape: round: Euclidean distance between coordinates; square: the largest difference along an axis
        count: how the ratio becomes a number
    """

    def __init__(self, *, ratio: float = 0.8, blocks: int = 1, shape: Shape = "square", count: Count = "floor_visible"):
        check_ratio(ratio)
        if blocks < 1:
            raise MaemmError(f"blocks is {blocks} (masking.blocks); show 1 region or more")
        self.ratio, self.blocks, self.shape, self.count = ratio, blocks, shape, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        near_first = rank_by_distance(name, tokens, rng, self.blocks, self.shape)
        return plan_from_order(noise_order(near_first, tokens), tokens, self.ratio, self.count)


def rank_by_distance(name: str, tokens: Tokens, rng: Rng, centres: int, shape: Shape) -> Tensor:
    """(B, N) rank of every token by its distance to the nearest of ``centres`` random valid ones: 0 is the nearest.

    Ties are broken at random.
    """
    device = tokens.values.device
    seat = rng.uniform(f"mask/{name}/centre", *(() if centres == 1 else (centres,))).to(device).view(-1, centres)
    among = tokens.count if tokens.valid is None else tokens.valid.sum(1, keepdim=True)
    index = (seat * among).long()
    if tokens.valid is not None:  # the seat-th VALID token
        ranked = torch.where(tokens.valid, 0, 1).argsort(stable=True, dim=1)
        index = ranked.gather(1, index.clamp(max=tokens.count - 1))
    coords = tokens.coords.expand(tokens.batch, -1, -1).float()
    centre = coords.gather(1, index[..., None].expand(-1, -1, coords.shape[-1]))
    difference = coords[:, :, None] - centre[:, None]  # (B, N, centres, A)
    distance = difference.abs().amax(-1) if shape == "square" else difference.square().sum(-1)
    ties = rng.uniform(f"mask/{name}/ties", tokens.count).to(device)
    # Coordinates may be of any size, so nothing is added to the distance: at random first, then by distance.
    order = ties.argsort(1)
    order = order.gather(1, distance.amin(-1).gather(1, order).argsort(stable=True, dim=1))
    return torch.empty_like(ties).scatter_(1, order, torch.arange(float(tokens.count), device=device).expand_as(ties))
