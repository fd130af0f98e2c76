"""Masks that an encoder guides, on a GPU: the host waits for nothing, and the plans are those of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from maemm import config
from maemm.contract import Plan, Preprocessed
from maemm.contract.rng import Rng
from maemm.model.build import build_model

from .device import gpu

RECIPE = {
    "modalities": {"toy": {"size": 16}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}
MASKINGS = {
    "tokens ask": {"type": "attention"},
    "class tokens ask one head": {"type": "attention", "queries": "prefix", "heads": "random"},
    "a subset": {"type": "attention", "queries": "all", "noise": "subset", "share": 0.5},
    "a schedule": {"type": "attention", "share": {"start": 0.0, "end": 1.0}, "count": "round_hidden"},
    "clusters": {"type": "clusters", "hints": 0.3},
    "the inner cluster": {"type": "clusters", "object": "inner"},
    "clones": {"type": "multi_mask", "masks_per_sample": 2, "masking": {"type": "attention", "share": 0.7}},
}


def planned(spec: dict, device: str, padded: bool, books: Callable[[], list] = list) -> tuple[Plan, list]:
    """The plan of a second step, and what ``books`` have gained in it."""
    torch.manual_seed(0)
    model = build_model(config.load(RECIPE, {"masking": spec})).train().to(device)
    valid = torch.ones(3, 16, 16, dtype=torch.bool)
    valid[1, :8], valid[2, 2:, 2:] = False, False
    batch = Preprocessed(torch.randn(3, 1, 16, 16), valid if padded else None)
    moved = replace(
        batch,
        x=batch.x.to(device, non_blocking=True),
        valid=None if batch.valid is None else batch.valid.to(device, non_blocking=True),
    )
    model.plan({"toy": moved}, Rng((0, 1), range(3), 3, 0.3))  # constants are made once
    before = len(books())
    inputs = model.plan({"toy": moved}, Rng((0, 2), range(3), 3, 0.3))
    return inputs["toy"].plan, books()[before:]


@pytest.mark.parametrize("name", MASKINGS)
@pytest.mark.parametrize("padded", [False, True])
def test_guided_masks_are_drawn_without_a_wait(toys, name, padded):
    spec = MASKINGS[name]
    expected, _ = planned(spec, "cpu", padded)
    with gpu() as seen:
        plan, waits = planned(spec, "cuda", padded, lambda: [str(x) for x in (*seen.blocking_copies, *seen.waits)])
        assert waits == []
        plan = plan.to("cpu")
    for role in ("visible", "predict", "counted"):
        assert getattr(plan, role).tolist() == getattr(expected, role).tolist()
