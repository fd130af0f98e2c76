"""What a trained network is compared with: raw values, and the same network untrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maemm.contract.rng import seeded
from maemm.model.model import Model
from maemm.tasks._shared.stream_model import reinitialized

RAW, UNTRAINED, TRAINED = "raw values", "untrained", "trained"
Show = Callable[[str], Callable[[int, int], Any] | None]  # kind of features -> on_progress while they are computed


def untrained(model: Model, seed: int) -> Model:
    """The same network with fresh weights, on the same device, in eval mode."""
    with seeded(seed, "untrained"):
        network = reinitialized(model)
    network.bf16 = model.bf16
    return network.to(next(model.parameters()).device).eval()
