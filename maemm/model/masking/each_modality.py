"""A masking for each modality."""

from __future__ import annotations

from typing import Any

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.masking.counts import single_set


class EachModality(Masking):
    """Apply to each modality its own masking. Raises :class:`MaemmError` where all of them hide all tokens."""

    def __init__(self, maskings: dict[str, Masking]):
        if all(getattr(masking, "ratio", None) == 1 for masking in maskings.values()):
            raise MaemmError(
                "no token of any modality is visible; give one of them a mask ratio below 1 (masking.ratio)"
            )
        self.maskings = maskings
        self.guide = next((masking.guide for masking in maskings.values() if masking.guide), None)

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        plans: dict[str, Plan] = {}
        for name, modality_tokens in tokens.items():
            plans |= single_set(self.maskings[name]({name: modality_tokens}, rng, guides))
        return plans
