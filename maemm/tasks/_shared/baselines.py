"""What a trained network is compared with: raw values, and the same network untrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maemm.contract.rng import seeded
from maemm.model.model import Model
from maemm.tasks._shared.stream import fresh

RAW, UNTRAINED, TRAINED = "raw values", "untrained", "trained"
Show = Callable[[str], Callable[[int, int], Any] | None]  # what is embedded -> its on_progress


def untrained(model: Model, seed: int) -> Model:
    """The same network with fresh weights."""
    with seeded(seed, "untrained"):
        found = fresh(model)
    return found.to(next(model.parameters()).device).eval()
