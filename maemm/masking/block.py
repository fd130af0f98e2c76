"""Block masking: hide one coherent region."""

from __future__ import annotations

from typing import Literal

import torch

from maemm.contract import OneMasking, Plan, Tokens
from maemm.draws import Draw
from maemm.masking.counts import Count, check_ratio, noise_order, plan_from_order


class Block(OneMasking):
    """Hide the tokens nearest to a random one; exact counts. On a set of points as Point-MAE's "block".

    Options
        ratio: share of the tokens that is hidden
        shape: round: Euclidean distance between coordinates; square: the largest difference along an axis
        count: how the ratio becomes a number
    """

    def __init__(
        self, *, ratio: float = 0.5, shape: Literal["round", "square"] = "round", count: Count = "floor_hidden"
    ):
        check_ratio(ratio)
        self.ratio, self.shape, self.count = ratio, shape, count

    def plan(self, name: str, tokens: Tokens, draw: Draw) -> Plan:
        device = tokens.values.device
        seat = draw.rand(f"mask/{name}/centre").to(device)
        among = tokens.count if tokens.valid is None else tokens.valid.sum(1)
        index = (seat * among).long()[:, None]
        if tokens.valid is not None:  # the seat-th VALID token
            ranked = torch.where(tokens.valid, 0, 1).argsort(stable=True, dim=1)
            index = ranked.gather(1, index.clamp(max=tokens.count - 1))
        coords = tokens.coords.expand(tokens.batch, -1, -1).float()
        difference = coords - coords.gather(1, index[..., None].expand(-1, 1, coords.shape[-1]))
        distance = difference.abs().amax(-1) if self.shape == "square" else difference.square().sum(-1)
        ties = draw.rand(f"mask/{name}/ties", tokens.count).to(device)
        far_first = -(distance + ties * 1e-4)  # kept first = farthest first
        return plan_from_order(noise_order(far_first, tokens), tokens, self.ratio, self.count)
