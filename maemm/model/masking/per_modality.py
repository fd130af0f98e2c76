"""Every modality has its own masking."""

from __future__ import annotations

from typing import Any

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.rng import Rng


class Each(Masking):
    """Apply to each modality the masking that its recipe names."""

    def __init__(self, maskings: dict[str, Masking]):
        self.maskings = maskings
        self.guide = next((m.guide for m in maskings.values() if m.guide), None)

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        plans: dict[str, Plan] = {}
        for name, one in tokens.items():
            plans |= self.maskings[name]({name: one}, rng, guides)
        return plans
