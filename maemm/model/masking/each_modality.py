"""A masking for each modality."""

from __future__ import annotations

import math
from typing import Any

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.masking.counts import as_sets


class EachModality(Masking):
    """Apply to each modality its own masking. Raises :class:`MaemmError` where all of them hide all tokens."""

    def __init__(self, maskings: dict[str, Masking]):
        if all(getattr(masking, "ratio", None) == 1 for masking in maskings.values()):
            raise MaemmError(
                "no token of any modality is visible; give one of them a mask ratio below 1 (masking.ratio)"
            )
        self.maskings = maskings

    def guide_of(self, name: str, progress: float) -> str | None:
        return self.maskings[name].guide_of(name, progress)

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        """Each modality draws for itself."""
        counts = [self.maskings[name].shapes({name: x}) for name, x in tokens.items()]
        known = [count for count in counts if count is not None]
        return math.prod(known) if len(known) == len(counts) else None

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        drawn = {name: as_sets(self.maskings[name]({name: x}, rng, guides)) for name, x in tokens.items()}
        number = max(map(len, drawn.values()), default=1)
        odd = sorted({len(sets) for sets in drawn.values()} - {1, number})
        if odd:
            raise MaemmError(
                f"modalities have {odd[0]} and {number} sets of plans (modalities.NAME.masking); give all of them the "
                "same number, or one"
            )
        joined = [{name: sets[k % len(sets)][name] for name, sets in drawn.items()} for k in range(number)]
        return joined if number > 1 else joined[0]

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        lines: dict[str, list[str]] = {}
        for name, x in tokens.items():
            lines |= self.maskings[name].notes({name: x}, rng)
        return lines
