"""Drawing masks on a GPU: the host waits for nothing, and the plans are those of a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maemm.contract import Plan, Tokens
from maemm.contract.positions import lattice
from maemm.contract.rng import Rng
from maemm.registry.make import make

from .device import gpu

GRID, BATCH = (4, 8, 8), 3
MASKINGS: dict[str, dict[str, Any]] = {
    "blocks one by one": {"type": "multi_block", "min_keep": 4},
    "as published": {"type": "multi_block", "min_keep": 4, "count": "official"},
    "scan": {"type": "scan", "order": "hilbert", "ratio": [0.4, 0.6]},
    "stride": {"type": "scan", "mode": "stride"},
    "scattered blocks": {"type": "scattered_blocks"},
    "tubes": {"type": "random", "along": [0]},
    "groups": {"type": "random", "groups": 0, "group_ratios": [0.1, 0.4, 0.6, 0.9]},
    "axes": {"type": "random", "axis_ratios": [0.5, 0.2, 0.0]},
    "clones": {"type": "multi_mask", "masking": {"type": "multi_block", "min_keep": 4}},
    "unions": {"type": "multi_block", "generators": [{"blocks": 8}, {"blocks": 2, "scale": [0.7, 0.7]}]},
    "budget": {"type": "dirichlet", "budget": 40},
    "budget of subsets, as published": {"type": "dirichlet", "budget": 40, "subsets": True, "count": "official"},
    "uneven budget": {"type": "dirichlet", "budget": 40, "concentration": {"x": 0.3}},
    "a part of the hidden tokens": {"type": "predict_some", "masking": {"type": "random", "ratio": 0.75}},
}


def plans(spec: dict[str, Any], device: str, padded: bool) -> list[Plan]:
    count = torch.Size(GRID).numel()
    valid = torch.arange(count).expand(BATCH, -1) < torch.tensor([[count], [count // 2], [3]])
    tokens = Tokens(torch.zeros(BATCH, count, 1), lattice(GRID)[None], GRID, valid if padded else None)
    moved = Tokens(
        *(x.to(device, non_blocking=True) for x in (tokens.values, tokens.coords)),
        GRID,
        None if tokens.valid is None else tokens.valid.to(device, non_blocking=True),
    )
    masking = make("maskings", spec)
    drawn = masking({"x": moved}, Rng((0, 1), range(BATCH), BATCH))
    drawn = masking({"x": moved}, Rng((0, 2), range(BATCH), BATCH))
    return [each["x"] for each in (drawn if isinstance(drawn, list) else [drawn])]


CASES = [(name, padded) for name in MASKINGS for padded in (False, True) if not (padded and name == "as published")]


@pytest.mark.parametrize(("name", "padded"), CASES)
def test_masks_are_drawn_without_a_wait(name, padded):
    spec = MASKINGS[name]
    expected = plans(spec, "cpu", padded)
    with gpu() as seen:
        received = plans(spec, "cuda", padded)
        assert [*map(str, seen.waits)] == [] and [*map(str, seen.blocking_copies)] == []
        received = [plan.to("cpu") for plan in received]
    for plan, same in zip(received, expected, strict=True):
        for role in ("visible", "predict", "counted"):
            assert getattr(plan, role).tolist() == getattr(same, role).tolist()
