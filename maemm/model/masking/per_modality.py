"""A masking for each modality."""

from __future__ import annotations

from typing import Any

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.rng import Rng


class EachModality(Masking):
    """Apply to each modality its own masking."""

    def __init__(self, maskings: dict[str, Masking]):
        self.maskings = maskings
        self.guide = next((masking.guide for masking in maskings.values() if masking.guide), None)

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        plans: dict[str, Plan] = {}
        for name, modality_tokens in tokens.items():
            plans |= self.maskings[name]({name: modality_tokens}, rng, guides)
        return plans
